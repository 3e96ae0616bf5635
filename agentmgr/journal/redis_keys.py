"""How the journal of a service lies in Redis: its keys, and what each of them holds.

All keys of a service begin with `PREFIX:{SERVICE_ID}:`, so one Redis may serve others too. What is in braces
is the hash tag of Redis Cluster: all keys of a service are in one slot, and one script changes several of
them, which is what a transaction is here. After that beginning:

    meta          hash: `version` of this layout; `made`, a random mark that another Redis, or one that was
                  emptied, has not; `bytes`, about as much as all sessions take; `pulse`, when a lease was
                  last renewed, and `grace_until`, both in ms by Redis' clock: see below
    session:ID    hash: `owner` and `name` (absent: none), `created_at`, `ended_at` and `end_reason` (absent:
                  it has not ended), `holder` (absent: any host may take it up), `epoch` (raised by each
                  claim), `written` (a mark of the last write of it as a whole), `last_seq` (at the last
                  change that was no event; the stream may be further), `last_turn`, `state`, `memory`,
                  `history`, `history_turn`, `input_tokens`, `output_tokens`, and `bytes`, about as much as it
                  takes
    events:ID     stream: an entry is consecutive events of one turn. Its id is `LAST-FIRST`, the numbers of
                  the last event in it and of the first; its fields are `t`, the number of the turn (0: of
                  none), and `l`, the lines, with line breaks between. In a line, the byte 1A stands for the
                  content of the answer of its turn, see `schema.ANSWER`
    turns:ID      hash, for turn N: `N` → `[STEP_ID, ACCEPTED_AT]`, a line break, the message; `N:begun` →
                  `[STATUS, ATTEMPTS, STARTED_AT]`, absent while it waits for the first time; `N:ended` →
                  `[ENDED_BY, ENDED_AT]`, absent until then; `N:answer` → the answer, absent where none is
    questions:ID  hash: step id → `[ASKED_AT]`, a line break, the content
    by_use        sorted set of the ids of all sessions, by `last_used_at`, which is nowhere else
    by_use:OWNER  the same, of the sessions of one owner
    names         hash: `name_field(OWNER, NAME)` → the id of the session that has it and has not ended
    unfinished    sorted set of `ID N`, turns that have not ended; all scores are 0
    asked         sorted set of `ID STEP_ID`, open questions of all sessions, by the time they were asked at
    leases        sorted set of holders: until when each has its sessions if it is not heard of again, in ms
                  by Redis' clock. Of one that was revoked it is negative: minus the time of that
    batches       hash: holder → the number of the last batch of changes that it has written
    links         hash: id of a connection → its holder
    links:HOLDER  hash: id of a connection → `WRITTEN_AT STATE`, see `links`

Times are Unix times in seconds, as text that Python reads back to the same number, where nothing else is
said. What is in brackets is JSON.

A holder's lease is renewed every `RENEW_S`, and is over when it was not for `LEASE_S`. If nothing was renewed
for `SILENCE_S`, Redis itself was away, and leases of living hosts have run out: until `grace_until`, a
`LEASE_S` later, all leases that were not revoked count as good, so that each living host can renew its own.
"""

from __future__ import annotations

from attrs import define, field

VERSION = 1
PREFIX = "agentmgr"

RENEW_S = 3.0
LEASE_S = 10.0
SILENCE_S = 6.0
REMEMBERED_S = 7 * 86400.0  #: a holder that was not heard of for so long is forgotten, with its connections


@define
class Keys:
    """Of one service."""

    service_id: str
    prefix: str = PREFIX
    base: str = field(init=False)
    meta: str = field(init=False)
    by_use: str = field(init=False)
    names: str = field(init=False)
    unfinished: str = field(init=False)
    asked: str = field(init=False)
    leases: str = field(init=False)
    batches: str = field(init=False)
    links: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.base = f"{self.prefix}:{{{self.service_id}}}:"
        for name in ("meta", "by_use", "names", "unfinished", "asked", "leases", "batches", "links"):
            setattr(self, name, self.base + name)

    def session(self, session_id: str) -> str:
        return f"{self.base}session:{session_id}"

    def events(self, session_id: str) -> str:
        return f"{self.base}events:{session_id}"

    def turns(self, session_id: str) -> str:
        return f"{self.base}turns:{session_id}"

    def questions(self, session_id: str) -> str:
        return f"{self.base}questions:{session_id}"

    def by_use_of(self, owner: str) -> str:
        return f"{self.base}by_use:{owner}"

    def links_of(self, holder: str) -> str:
        return f"{self.base}links:{holder}"


def name_field(owner: str | None, name: str) -> str:
    """A name is of one session of its owner; no owner is an owner too, as in SQLite's journal.

    Scripts make it as well, of what a session's hash has: no other owner and name give the same.
    """
    return f"{len((owner or '').encode())}:{owner or ''}{name}"
