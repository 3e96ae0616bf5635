-- Nobody read them: how a session ended is in its event, and what it did in the totals.

DROP TABLE session_ends;
