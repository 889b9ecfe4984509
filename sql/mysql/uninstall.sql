-- Takes away all that install.sql made. Idempotent.
DROP TABLE IF EXISTS streamer_quarantine;
DROP TABLE IF EXISTS streamer_copied_part;
DROP TABLE IF EXISTS streamer_copy;
DROP TABLE IF EXISTS streamer_progress;
