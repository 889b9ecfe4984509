-- What streamer keeps in a MySQL or MariaDB target, in the database of the url. Idempotent. The keys compare bytes.
CREATE TABLE IF NOT EXISTS streamer_progress (
    sync VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    source VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    target VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    system_identifier VARCHAR(64) NOT NULL COMMENT 'of the cluster of the source, with database and slot: what the position belongs to',
    `database` VARCHAR(64) NOT NULL,
    slot VARCHAR(64) NOT NULL,
    position VARCHAR(17) NOT NULL COMMENT 'LSN: all that was committed on the source before it is in this database',
    origin VARCHAR(64) COMMENT 'the node that the last transaction was first made on',
    origin_position VARCHAR(17),
    origin_time DATETIME(6),
    updated DATETIME(6) NOT NULL,
    PRIMARY KEY (sync, source, target)
) ENGINE = InnoDB, DEFAULT CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;
CREATE TABLE IF NOT EXISTS streamer_copy (
    sync VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    source VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    target VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    schema_name VARCHAR(64) NOT NULL,
    table_name VARCHAR(64) NOT NULL,
    position VARCHAR(17) NOT NULL COMMENT 'LSN of the snapshot: earlier changes of the table are in its rows',
    `rows` BIGINT COMMENT 'NULL if the table needed no copy',
    copied_at DATETIME(6) NOT NULL,
    PRIMARY KEY (sync, source, target, schema_name, table_name)
) ENGINE = InnoDB, DEFAULT CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;
