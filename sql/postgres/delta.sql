-- The triggers of one captured table, for servers from 8.4 on. A template: what stands between at signs is filled in. Functions belong
-- to all tables whose keys are alike. Nothing here may depend on the settings of whoever changes a row: names of functions, operators
-- and types are whole. The triggers' names make them fire last.

-- function insert: notes the key of a new row.
CREATE FUNCTION streamer.@function@() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER @settings@
AS $@tag@$
@declared@
BEGIN
    INSERT INTO streamer.delta (relation, kind, key) VALUES (TG_RELID, 'i', @new_key@)@returned@;
    @nested@
    @wake@
    RETURN NULL;
END
$@tag@$;
COMMENT ON FUNCTION streamer.@function@() IS @comment@;

-- function update: notes the key of a row that has changed, or both keys.
CREATE FUNCTION streamer.@function@() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER @settings@
AS $@tag@$
@declared@
BEGIN
    IF @key_changes@ THEN
        INSERT INTO streamer.delta (relation, kind, key) VALUES (TG_RELID, 'd', @old_key@);
        INSERT INTO streamer.delta (relation, kind, key) VALUES (TG_RELID, 'i', @new_key@)@returned@;
    @unless_captured@
    ELSE
        INSERT INTO streamer.delta (relation, kind, key) VALUES (TG_RELID, 'u', @new_key@)@returned@;
    END IF;
    @nested@
    @wake@
    RETURN NULL;
END
$@tag@$;
COMMENT ON FUNCTION streamer.@function@() IS @comment@;

-- function delete: notes the key of a row that is gone.
CREATE FUNCTION streamer.@function@() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER @settings@
AS $@tag@$
@declared@
BEGIN
    INSERT INTO streamer.delta (relation, kind, key) VALUES (TG_RELID, 'd', @old_key@)@returned@;
    @nested@
    @wake@
    RETURN NULL;
END
$@tag@$;
COMMENT ON FUNCTION streamer.@function@() IS @comment@;

-- triggers rows: also of rows that are replicated to here.
CREATE TRIGGER zzz_streamer_insert AFTER INSERT ON @table@ FOR EACH ROW EXECUTE PROCEDURE streamer.@insert@();
CREATE TRIGGER zzz_streamer_update AFTER UPDATE ON @table@ FOR EACH ROW EXECUTE PROCEDURE streamer.@update@();
CREATE TRIGGER zzz_streamer_delete AFTER DELETE ON @table@ FOR EACH ROW EXECUTE PROCEDURE streamer.@delete@();
ALTER TABLE @table@ ENABLE ALWAYS TRIGGER zzz_streamer_insert;
ALTER TABLE @table@ ENABLE ALWAYS TRIGGER zzz_streamer_update;
ALTER TABLE @table@ ENABLE ALWAYS TRIGGER zzz_streamer_delete;

-- triggers truncate: of a partitioned table, on the table itself.
CREATE TRIGGER zzz_streamer_truncate AFTER TRUNCATE ON @table@ FOR EACH STATEMENT EXECUTE PROCEDURE streamer.delta_truncate();
ALTER TABLE @table@ ENABLE ALWAYS TRIGGER zzz_streamer_truncate;

-- fragment nested: where several nodes write, the version of a row is found by its xmin. The delta has the same one.
IF writer OPERATOR(pg_catalog.<>) (pg_catalog.txid_current() OPERATOR(pg_catalog.&) 4294967295) THEN
        INSERT INTO streamer.delta_nested (xid)
        SELECT writer WHERE NOT EXISTS (SELECT 1 FROM streamer.delta_nested AS s WHERE s.xid OPERATOR(pg_catalog.=) writer);
    END IF;

-- fragment wake: 1 means that a reader sleeps. Whoever finds it wakes it; a busy reader costs nobody a NOTIFY, which takes a lock that
-- all of the cluster's transactions share. A transaction that has said NOTIFY cannot be prepared (PREPARE TRANSACTION): where that may
-- be wanted nobody does, and the reader looks more often.
IF pg_catalog.pg_sequence_last_value('streamer.wakeup') OPERATOR(pg_catalog.=) 1
        AND pg_catalog.current_setting('max_prepared_transactions') OPERATOR(pg_catalog.=) '0' THEN
        PERFORM pg_catalog.setval('streamer.wakeup', 2);
        NOTIFY streamer_delta;
    END IF;

-- fragment wake_84: the same before version 10, at the cost of a query.
IF (SELECT w.last_value FROM streamer.wakeup AS w) OPERATOR(pg_catalog.=) 1
        AND pg_catalog.current_setting('max_prepared_transactions') OPERATOR(pg_catalog.=) '0' THEN
        PERFORM pg_catalog.setval('streamer.wakeup', 2);
        NOTIFY streamer_delta;
    END IF;
