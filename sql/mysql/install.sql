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
    position VARCHAR(17) NOT NULL COMMENT 'LSN of the snapshot: earlier changes of the table are in its rows; 0/0: not finished',
    `rows` BIGINT COMMENT 'NULL if the table needed no copy',
    copied_at DATETIME(6) NOT NULL,
    PRIMARY KEY (sync, source, target, schema_name, table_name)
) ENGINE = InnoDB, DEFAULT CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;
CREATE TABLE IF NOT EXISTS streamer_copied_part (
    sync VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    source VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    target VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    schema_name VARCHAR(64) NOT NULL,
    table_name VARCHAR(64) NOT NULL,
    bounds VARCHAR(190) NOT NULL COMMENT 'a JSON array: column, whether it is a number, greater than, not greater than (null: without end)',
    position VARCHAR(17) NOT NULL,
    row_count BIGINT NOT NULL,
    PRIMARY KEY (sync, source, target, schema_name, table_name, bounds)
) ENGINE = InnoDB, DEFAULT CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;
CREATE TABLE IF NOT EXISTS streamer_quarantine (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    sync VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    source VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    target VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    schema_name VARCHAR(64) NOT NULL,
    table_name VARCHAR(64) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    row_key LONGTEXT NOT NULL COMMENT 'a JSON object, as are the rows: {column: text or null}; a column that did not travel is missing',
    row_id CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'a digest of edge, table and key, before the change',
    next_row_id CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'and after it: by these later changes of the row are found',
    relation LONGTEXT NOT NULL COMMENT 'what it takes to apply it: {identity, net, columns: [[name, type, part of the identity]]}',
    old_row LONGTEXT,
    new_row LONGTEXT,
    error LONGTEXT COMMENT 'NULL if it follows a refused change of the same row',
    origin VARCHAR(64) NOT NULL,
    origin_position VARCHAR(17) NOT NULL,
    origin_time VARCHAR(40) NOT NULL,
    quarantined VARCHAR(40) NOT NULL,
    UNIQUE (row_id, id),
    UNIQUE (next_row_id, id)
) ENGINE = InnoDB, DEFAULT CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;
