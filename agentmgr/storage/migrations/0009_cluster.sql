-- The nodes of a cluster, and the secrets with which machines may join it: only their hashes are kept.

CREATE TABLE nodes (
  id       TEXT PRIMARY KEY NOT NULL,  -- empty: the manager's own machine
  name     TEXT NOT NULL UNIQUE,
  document TEXT NOT NULL CHECK (json_valid(document))
) STRICT;

CREATE TABLE join_secrets (
  id       TEXT PRIMARY KEY NOT NULL,
  document TEXT NOT NULL CHECK (json_valid(document))
) STRICT;
