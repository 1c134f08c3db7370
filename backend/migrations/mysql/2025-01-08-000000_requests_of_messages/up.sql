-- X-Request-Id of the request that a result is from. NULL for results from before this column.
ALTER TABLE outbox ADD COLUMN request_id VARBINARY(128);
