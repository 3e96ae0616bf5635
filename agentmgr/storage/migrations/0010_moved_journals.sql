-- Where the sessions are that were begun on a node, of a service whose journal has moved away from it.

CREATE TABLE journal_places (
  id         TEXT PRIMARY KEY NOT NULL,  -- SERVICE_ID@NODE_ID; the manager's own machine has no node id
  service_id TEXT NOT NULL REFERENCES services ON DELETE CASCADE,
  document   TEXT NOT NULL CHECK (json_valid(document))
) STRICT;
CREATE INDEX journal_places_by_service ON journal_places (service_id);
