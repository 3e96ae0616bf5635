-- What `Latency` keeps of the times of a service's sessions, as a document, and the most sessions at once.

ALTER TABLE totals ADD COLUMN sessions_peak INTEGER NOT NULL DEFAULT 0;
ALTER TABLE totals ADD COLUMN handshake TEXT NOT NULL DEFAULT '{"counts":{}}' CHECK (json_valid(handshake));
ALTER TABLE totals ADD COLUMN first_byte TEXT NOT NULL DEFAULT '{"counts":{}}' CHECK (json_valid(first_byte));
