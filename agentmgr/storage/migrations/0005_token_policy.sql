-- Whether the API and the gateway ask for tokens: 1 or 0. It is a setting of its own, so that deleting the
-- tokens opens nothing. A database from before starts with what its tokens meant then.

CREATE TABLE token_policy (
  id      INTEGER PRIMARY KEY CHECK (id = 1),
  api     INTEGER NOT NULL,
  gateway INTEGER NOT NULL
) STRICT;
INSERT INTO token_policy
  SELECT 1,
    EXISTS (SELECT 1 FROM tokens),
    EXISTS (SELECT 1 FROM tokens, json_each(tokens.document, '$.scopes') WHERE json_each.value LIKE 'connect%');
