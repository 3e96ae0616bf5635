"""Does, to disk: what the manager knows, in one SQLite file."""

from .copies import restore
from .sqlite import SqliteStore, names, open_store
from .store import HistoryLimits, Snapshot, Store

__all__ = ["HistoryLimits", "Snapshot", "SqliteStore", "Store", "names", "open_store", "restore"]
