-- What is known of the runs of a job.

CREATE TABLE jobs (
  service_id TEXT PRIMARY KEY REFERENCES services ON DELETE CASCADE,
  document   TEXT NOT NULL CHECK (json_valid(document))
) STRICT;
