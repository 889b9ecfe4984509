-- Takes away all that install.sql made. Idempotent.
DROP TABLE IF EXISTS streamer_copy;
DROP TABLE IF EXISTS streamer_progress;
