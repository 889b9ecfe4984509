-- What the capture by triggers keeps on a source, beside the triggers of each table (delta.sql), for servers from 8.4 on. Each object
-- begins with a line that names it; what is there already is left as it is, but for functions whose text is another one.

-- schema streamer: also made by install.sql, where the node is a target as well.
CREATE SCHEMA streamer;

-- sequence delta_id: the order in which changes of one row were made, since whoever draws a number holds the row's lock.
CREATE SEQUENCE streamer.delta_id;

-- sequence wakeup: 1 while a reader sleeps. Whoever changes a row then sets it to 2 and notifies the channel streamer_delta.
CREATE SEQUENCE streamer.wakeup START 2;

-- function delta_kept: of the truncate triggers on delta and delta_tag. What they hold is needed, and nothing else would tell of a loss.
CREATE OR REPLACE FUNCTION streamer.delta_kept() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'streamer.% holds changes that not all targets have yet; to give up a sync: streamer teardown --sync NAME',
        TG_TABLE_NAME;
END
$$;

-- table delta: the changed rows of all captured tables.
CREATE TABLE streamer.delta (
    id bigint NOT NULL DEFAULT pg_catalog.nextval('streamer.delta_id'),
    txid bigint NOT NULL DEFAULT pg_catalog.txid_current(),
    -- the table, of a partitioned one the partition
    relation oid NOT NULL,
    -- i, u, d: insert, update, delete. t: truncate. An update of the key is a delete of the old one and an insert of the new one
    kind "char" NOT NULL,
    -- the values of the key's columns as text; NULL of a truncate
    key text[],
    time timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE INDEX delta_txid ON streamer.delta (txid);
CREATE TRIGGER zzz_streamer_kept BEFORE TRUNCATE ON streamer.delta FOR EACH STATEMENT EXECUTE PROCEDURE streamer.delta_kept();
ALTER TABLE streamer.delta ENABLE ALWAYS TRIGGER zzz_streamer_kept;

-- table delta_tag: the transactions that streamer applied here, with where they were made: what is no row here was made here.
CREATE TABLE streamer.delta_tag (
    txid bigint PRIMARY KEY DEFAULT pg_catalog.txid_current(),
    id bigint NOT NULL DEFAULT pg_catalog.nextval('streamer.delta_id'),
    sync text NOT NULL,
    source text NOT NULL,
    origin text NOT NULL,
    origin_position text NOT NULL,
    origin_time timestamp with time zone NOT NULL,
    seen text NOT NULL
);
CREATE TRIGGER zzz_streamer_kept BEFORE TRUNCATE ON streamer.delta_tag FOR EACH STATEMENT EXECUTE PROCEDURE streamer.delta_kept();
ALTER TABLE streamer.delta_tag ENABLE ALWAYS TRIGGER zzz_streamer_kept;

-- table delta_identity: one row, made with the table. A restored dump has another relation, and its positions mean nothing.
CREATE TABLE streamer.delta_identity (
    id text NOT NULL,
    relation oid NOT NULL
);
INSERT INTO streamer.delta_identity (id, relation)
SELECT pg_catalog.md5(pg_catalog.random()::text || pg_catalog.clock_timestamp()::text || pg_catalog.txid_current()::text), c.oid
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'streamer' AND c.relname = 'delta';

-- table delta_reader: the streams that read here; the number of the last recorded batch, and of the last that all targets have.
CREATE TABLE streamer.delta_reader (
    stream text PRIMARY KEY,
    -- random: positions of a row that was made anew are others
    id text NOT NULL,
    number bigint NOT NULL,
    confirmed bigint NOT NULL,
    -- since when the server ran that recorded the last batch: what is promoted in its place may lack batches, and must not give
    -- their numbers to others
    server timestamp with time zone NOT NULL
);

-- table delta_batch: what a stream's batch holds: all that its snapshot sees, and that of the batch before does not.
CREATE TABLE streamer.delta_batch (
    stream text NOT NULL,
    number bigint NOT NULL,
    snapshot txid_snapshot NOT NULL,
    -- the least delta.id of the batch
    base bigint NOT NULL,
    recorded timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (stream, number)
);

-- table delta_nested: rows that are written behind a savepoint have its xid for their xmin, deltas the number of the transaction.
CREATE TABLE streamer.delta_nested (
    xid bigint PRIMARY KEY,
    txid bigint NOT NULL DEFAULT pg_catalog.txid_current()
);
CREATE INDEX delta_nested_txid ON streamer.delta_nested (txid);

-- function delta_truncate: of the truncate triggers of all tables.
CREATE OR REPLACE FUNCTION streamer.delta_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    writer bigint;
BEGIN
    INSERT INTO streamer.delta (relation, kind) VALUES (TG_RELID, 't') RETURNING xmin::pg_catalog.text::pg_catalog.int8 INTO writer;
    IF writer OPERATOR(pg_catalog.<>) (pg_catalog.txid_current() OPERATOR(pg_catalog.&) 4294967295) THEN
        INSERT INTO streamer.delta_nested (xid)
        SELECT writer WHERE NOT EXISTS (SELECT 1 FROM streamer.delta_nested AS s WHERE s.xid OPERATOR(pg_catalog.=) writer);
    END IF;
    IF pg_catalog.current_setting('max_prepared_transactions') OPERATOR(pg_catalog.=) '0' THEN
        NOTIFY streamer_delta;
    END IF;
    RETURN NULL;
END
$$;

-- function delta_tag: of the triggers on progress, copy and copied_part, one of whose rows is the first that streamer writes in a transaction.
CREATE OR REPLACE FUNCTION streamer.delta_tag() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    known text := '{}';
    writer bigint := NEW.xmin::pg_catalog.text::pg_catalog.int8;
BEGIN
    IF TG_TABLE_NAME OPERATOR(pg_catalog.=) 'progress' THEN
        known := NEW.seen;
    END IF;
    UPDATE streamer.delta_tag AS t
    SET sync = NEW.sync, source = NEW.source, origin = NEW.origin, origin_position = NEW.origin_position,
        origin_time = NEW.origin_time, seen = known
    WHERE t.txid OPERATOR(pg_catalog.=) pg_catalog.txid_current();
    IF NOT FOUND THEN
        INSERT INTO streamer.delta_tag (sync, source, origin, origin_position, origin_time, seen)
        VALUES (NEW.sync, NEW.source, NEW.origin, NEW.origin_position, NEW.origin_time, known);
    END IF;
    IF writer OPERATOR(pg_catalog.<>) (pg_catalog.txid_current() OPERATOR(pg_catalog.&) 4294967295) THEN
        INSERT INTO streamer.delta_nested (xid)
        SELECT writer WHERE NOT EXISTS (SELECT 1 FROM streamer.delta_nested AS s WHERE s.xid OPERATOR(pg_catalog.=) writer);
    END IF;
    RETURN NULL;
END
$$;

-- trigger zzz_streamer_tag on progress: where the node is a target as well.
DROP TRIGGER IF EXISTS zzz_streamer_tag ON streamer.progress;
CREATE TRIGGER zzz_streamer_tag AFTER INSERT OR UPDATE ON streamer.progress
    FOR EACH ROW EXECUTE PROCEDURE streamer.delta_tag();
ALTER TABLE streamer.progress ENABLE ALWAYS TRIGGER zzz_streamer_tag;

-- trigger zzz_streamer_tag on copy: where the node is a target as well.
DROP TRIGGER IF EXISTS zzz_streamer_tag ON streamer.copy;
CREATE TRIGGER zzz_streamer_tag AFTER INSERT OR UPDATE ON streamer.copy
    FOR EACH ROW EXECUTE PROCEDURE streamer.delta_tag();
ALTER TABLE streamer.copy ENABLE ALWAYS TRIGGER zzz_streamer_tag;

-- trigger zzz_streamer_tag on copied_part: where the node is a target as well.
DROP TRIGGER IF EXISTS zzz_streamer_tag ON streamer.copied_part;
CREATE TRIGGER zzz_streamer_tag AFTER INSERT OR UPDATE ON streamer.copied_part
    FOR EACH ROW EXECUTE PROCEDURE streamer.delta_tag();
ALTER TABLE streamer.copied_part ENABLE ALWAYS TRIGGER zzz_streamer_tag;

-- function delta_removal: of the trigger on removal, each of whose rows stands for the delete of a key that has no row here.
CREATE OR REPLACE FUNCTION streamer.delta_removal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $$
BEGIN
    INSERT INTO streamer.delta (relation, kind, key) VALUES (TG_RELID, 'd', ARRAY[NEW.schema_name, NEW.table_name, NEW.key]);
    IF pg_catalog.current_setting('max_prepared_transactions') OPERATOR(pg_catalog.=) '0' THEN
        NOTIFY streamer_delta;
    END IF;
    RETURN NULL;
END
$$;

-- trigger zzz_streamer_removal on removal: where the node is a target as well.
DROP TRIGGER IF EXISTS zzz_streamer_removal ON streamer.removal;
CREATE TRIGGER zzz_streamer_removal AFTER INSERT ON streamer.removal
    FOR EACH ROW EXECUTE PROCEDURE streamer.delta_removal();
ALTER TABLE streamer.removal ENABLE ALWAYS TRIGGER zzz_streamer_removal;
