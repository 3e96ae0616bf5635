-- A value of ours is kept as a JSON document, which the strict converter writes and reads; beside it stand
-- only the columns that a constraint or a query needs. So a new optional field needs no migration, and
-- there is one way in and out. Times (`at`) are microseconds since 1970 UTC.

CREATE TABLE services (
  id       TEXT PRIMARY KEY NOT NULL,
  name     TEXT NOT NULL UNIQUE,
  version  INTEGER NOT NULL,
  document TEXT NOT NULL CHECK (json_valid(document))
) STRICT;

CREATE TABLE rules (
  id       TEXT PRIMARY KEY NOT NULL,
  name     TEXT NOT NULL UNIQUE,
  version  INTEGER NOT NULL,
  document TEXT NOT NULL CHECK (json_valid(document))
) STRICT;

CREATE TABLE instances (
  id         TEXT PRIMARY KEY NOT NULL,
  service_id TEXT NOT NULL REFERENCES services ON DELETE CASCADE,
  document   TEXT NOT NULL CHECK (json_valid(document))
) STRICT;
CREATE INDEX instances_of_service ON instances (service_id);

CREATE TABLE totals (
  service_id        TEXT PRIMARY KEY NOT NULL REFERENCES services ON DELETE CASCADE,
  sessions_total    INTEGER NOT NULL,
  sessions_failed   INTEGER NOT NULL,
  session_seconds   REAL NOT NULL,
  bytes_from_client INTEGER NOT NULL,
  bytes_to_client   INTEGER NOT NULL,
  restarts          INTEGER NOT NULL,
  errors            INTEGER NOT NULL
) STRICT;

-- In the three histories `id` rises with time, so the newest, the oldest and the prunable rows are at its
-- ends; an index on service_id holds the id as well.

CREATE TABLE health_checks (
  id         INTEGER PRIMARY KEY,
  service_id TEXT NOT NULL REFERENCES services ON DELETE CASCADE,
  at         INTEGER NOT NULL,
  document   TEXT NOT NULL CHECK (json_valid(document))
) STRICT;
CREATE INDEX health_checks_of_service ON health_checks (service_id);

CREATE TABLE session_ends (
  id         INTEGER PRIMARY KEY,
  service_id TEXT NOT NULL REFERENCES services ON DELETE CASCADE,
  at         INTEGER NOT NULL,
  document   TEXT NOT NULL CHECK (json_valid(document))
) STRICT;
CREATE INDEX session_ends_of_service ON session_ends (service_id);

-- Events outlive what they tell of.
CREATE TABLE events (
  id       INTEGER PRIMARY KEY,
  at       INTEGER NOT NULL,
  document TEXT NOT NULL CHECK (json_valid(document))
) STRICT;
