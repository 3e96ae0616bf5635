-- Who may ask over TCP. Of a token only its hash is kept, inside the document; it cannot be read back.

CREATE TABLE tokens (
  id       TEXT PRIMARY KEY NOT NULL,
  name     TEXT NOT NULL UNIQUE,
  version  INTEGER NOT NULL,
  document TEXT NOT NULL CHECK (json_valid(document))
) STRICT;
