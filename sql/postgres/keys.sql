-- Keeps the deleted keys of one table: deletes, changed keys and truncates, those that streamer applies included. A template:
-- what stands between at signs is filled in for the table. The names make the triggers fire last.

CREATE OR REPLACE FUNCTION streamer.@function@() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp @settings@
AS $@tag@$
DECLARE
    gone uuid := @truncated@;
    old_key text := '';
BEGIN
    @unless_moved@
    IF TG_OP <> 'TRUNCATE' THEN
        old_key := @old_key@;
        gone := @old_id@;
        @forget@
    END IF;
    @bury@
    RETURN NULL;
END
$@tag@$;

COMMENT ON FUNCTION streamer.@function@() IS @comment@;

CREATE TRIGGER zz_streamer_delete AFTER DELETE ON @table@
    FOR EACH ROW EXECUTE PROCEDURE streamer.@function@();
CREATE TRIGGER zz_streamer_key AFTER UPDATE ON @table@
    FOR EACH ROW @when@ EXECUTE PROCEDURE streamer.@function@();
CREATE TRIGGER zz_streamer_truncate AFTER TRUNCATE ON @table@
    FOR EACH STATEMENT EXECUTE PROCEDURE streamer.@function@();
ALTER TABLE @table@ ENABLE ALWAYS TRIGGER zz_streamer_delete;
ALTER TABLE @table@ ENABLE ALWAYS TRIGGER zz_streamer_key;
ALTER TABLE @table@ ENABLE ALWAYS TRIGGER zz_streamer_truncate;
