-- Keeps, for one table with merged columns (delta, max, min), which transaction wrote the other columns of a row, where the row's own
-- xmin is that of an update of merged columns only. A template, as keys.sql.

CREATE OR REPLACE FUNCTION streamer.@function@() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp @settings@
AS $@tag@$
DECLARE
    writer xid;
    new_key text := @new_key@;
    kept uuid := @new_id@;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        writer := OLD.xmin;
        @equate@
        IF OLD *= NEW THEN
            INSERT INTO streamer.version (id, xid)
            SELECT kept, writer WHERE NOT EXISTS (SELECT 1 FROM streamer.version AS v WHERE v.id = kept);
            RETURN NULL;
        END IF;
    END IF;
    -- also after an insert: a truncate leaves what was kept of its rows
    DELETE FROM streamer.version AS v WHERE v.id = kept;
    RETURN NULL;
END
$@tag@$;

COMMENT ON FUNCTION streamer.@function@() IS @comment@;

CREATE TRIGGER zz_streamer_insert AFTER INSERT ON @table@
    FOR EACH ROW EXECUTE PROCEDURE streamer.@function@();
-- streamer itself keeps the versions of what it merges
CREATE TRIGGER zz_streamer_version AFTER UPDATE ON @table@
    FOR EACH ROW EXECUTE PROCEDURE streamer.@function@();
ALTER TABLE @table@ ENABLE ALWAYS TRIGGER zz_streamer_insert;
