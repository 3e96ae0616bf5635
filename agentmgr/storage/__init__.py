"""Keeps what a manager knows, in one SQLite file.

Parts, in reading order:

* `store`: what the manager may ask of a storage (`Store`); `agentmgr.testing.MemoryStore` is another one.
* `sqlite`: the store in a file (`open_store`): one thread, the queue of facts, waiting for locks;
  `group_commit`: one transaction for the records of many instances that start at once.
* `tables`: what each operation reads and writes, inside a transaction that the caller began.
* `minutes`: what each service did in each minute of the last day.
* `pruning`: keeps events, health checks and ends within `HistoryLimits`, a little with each batch.
* `schema`: opens a file: is it ours, is it sound, is it as new as this version? Runs `migrations/NNNN_*.sql`.
* `copies`: `agentmgr backup`, while all goes on, and `restore`.

Invariants:

* A write that returns is durable. One that raises has changed nothing; one that is cancelled is done or not
  done, never half done.
* A fact (an event, a health check, the end of a connection) is recorded without waiting for the disk. Facts
  wait in memory, at most so many, while the disk fails; `degraded` says so, and nothing else stops.
* Only the manager that holds the database's lock opens it for writing. Reading works without, also on a file
  of an earlier version, and leaves no files beside it.
* A file that is not a database of ours, is damaged, or is of a later version, is refused and left untouched.
* A migration is never changed once it was released; a new version of the schema is a new file.
* A backup and a restored database are complete under their names or not there: written beside, then renamed.

Words:

* fact: what happened, with its time; written in batches and never updated
* document: a service, rule or token as JSON in its row, with its version; an update names the version before
* totals: what a service's facts add up to; kept when the facts are pruned

It must not know processes, clients or the API: the manager passes it values and gets values.
"""

from .copies import restore
from .sqlite import SqliteStore, names, open_store
from .store import HistoryLimits, Snapshot, Store

__all__ = ["HistoryLimits", "Snapshot", "SqliteStore", "Store", "names", "open_store", "restore"]
