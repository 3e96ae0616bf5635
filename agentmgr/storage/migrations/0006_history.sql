-- How the last instances of each service ended, and what each service did in each minute of the last day.

CREATE TABLE ends (
  id         INTEGER PRIMARY KEY,
  service_id TEXT NOT NULL REFERENCES services ON DELETE CASCADE,
  at         INTEGER NOT NULL,
  document   TEXT NOT NULL CHECK (json_valid(document))
) STRICT;
CREATE INDEX ends_of_service ON ends (service_id);

-- A number for each service that was measured, never that of another one: the rows of a service that is gone
-- belong to nothing, until they are a day old.
CREATE TABLE measured (
  number     INTEGER PRIMARY KEY AUTOINCREMENT,
  service_id TEXT NOT NULL UNIQUE REFERENCES services ON DELETE CASCADE
) STRICT;

-- By minute first: they are added at the end and deleted from the front, whatever their number. NULL: nothing
-- was measured. Small whole numbers, which take one to three bytes each.
CREATE TABLE minutes (
  minute        INTEGER NOT NULL, -- since 1970
  number        INTEGER NOT NULL, -- of its service
  connections   INTEGER NOT NULL,
  sessions      INTEGER,
  cpu           INTEGER, -- thousandths of a core
  memory        INTEGER, -- KiB
  first_byte_50 INTEGER, -- microseconds, percentiles
  first_byte_95 INTEGER,
  restarts      INTEGER NOT NULL,
  PRIMARY KEY (minute, number)
) STRICT, WITHOUT ROWID;
