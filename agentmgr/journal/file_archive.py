"""An `Archive` of journals that are SQLite files in one directory, of this machine or of a node."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import asdict

from ..errors import StorageError
from . import copies
from . import sqlite_archive as file
from .archive import (
    EVENT_BYTES,
    ArchiveFigures,
    Found,
    Limits,
    OpenQuestion,
    Pruned,
    Query,
    SaidMessage,
    SessionPage,
    SessionSummary,
)
from .journal import Frame, SessionSnapshot, StoredFrame

Do = Callable[..., Any]
Options = Mapping[str, Mapping[str, object]]
"""The services whose files are asked, by id, each with arguments of its own."""


class FileArchive(ABC):
    """See `Archive`. What is asked is a function of `sqlite_archive`, called where the files are."""

    @abstractmethod
    async def ask(self, do: Do, of: Options, *args: object, **options: object) -> Found[Any]:
        """What `do` gives for each of these files that there is."""

    async def sessions(self, query: Query, cursors: Mapping[str, str | None]) -> Found[SessionPage]:
        of = {service_id: {"cursor": cursor} for service_id, cursor in cursors.items()}
        return await self.ask(file.sessions, of, **asdict(query))

    async def session(
        self, services: Collection[str], session_id: str
    ) -> Found[tuple[SessionSummary, SessionSnapshot] | None]:
        return await self.ask(file.session, _each(services), session_id)

    async def questions(self, services: Collection[str]) -> Found[Sequence[OpenQuestion]]:
        return await self.ask(file.questions, _each(services))

    async def has_unfinished(self, services: Collection[str]) -> Found[bool]:
        return await self.ask(file.has_unfinished, _each(services))

    async def figures(self, services: Collection[str]) -> Found[ArchiveFigures]:
        return await self.ask(file.figures, _each(services))

    async def prune(self, limits: Mapping[str, Limits], *, now: float | None = None) -> Found[Pruned]:
        of = {service_id: asdict(kept) for service_id, kept in limits.items()}
        return await self.ask(file.prune, of, now=now)

    async def events(
        self, service_id: str, session_id: str, since: int = 0, *, max_bytes: int = EVENT_BYTES
    ) -> Sequence[StoredFrame] | None:
        found: Sequence[StoredFrame] | None = await self._one(
            file.events, service_id, None, session_id, since, max_bytes=max_bytes
        )
        return found

    async def events_with(self, service_id: str, session_id: str, text: str) -> Sequence[Frame]:
        found: Sequence[Frame] = await self._one(file.events_with, service_id, (), session_id, text)
        return found

    async def messages(
        self, service_id: str, session_id: str, after: int, to: int
    ) -> Mapping[int, SaidMessage]:
        found: Mapping[int, SaidMessage] = await self._one(
            file.messages, service_id, {}, session_id, after, to
        )
        return found

    async def turn_that_runs(self, service_id: str, session_id: str) -> int:
        return int(await self._one(file.turn_that_runs, service_id, 0, session_id))

    async def turn_of(self, service_id: str, session_id: str, seq: int) -> int:
        return int(await self._one(file.turn_of, service_id, 0, session_id, seq))

    async def erase(self, service_id: str, session_id: str) -> bool:
        return bool(await self._one(file.erase, service_id, False, session_id))

    async def remove(self, service_id: str) -> None:
        await self._one(copies.remove, service_id, None)

    async def _one(self, do: Do, service_id: str, absent: Any, *args: object, **options: object) -> Any:
        found = await self.ask(do, _each([service_id]), *args, **options)
        if service_id in found.unreadable:
            raise StorageError(found.unreadable[service_id])
        return found.values.get(service_id, absent)


class DirectoryArchive(FileArchive):
    """The files `DIRECTORY/SERVICE_ID.db` of this machine."""

    key = node_id = ""
    label = "this machine"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._limiter = trio.CapacityLimiter(4)

    async def ask(self, do: Do, of: Options, *args: object, **options: object) -> Found[Any]:
        return await trio.to_thread.run_sync(
            lambda: ask_files(self._directory, do, of, *args, **options), limiter=self._limiter
        )

    async def session(
        self, services: Collection[str], session_id: str
    ) -> Found[tuple[SessionSummary, SessionSnapshot] | None]:
        def look() -> Found[Any]:
            unreadable: dict[str, str] = {}
            for service_id in services:
                found = ask_files(self._directory, file.session, _each([service_id]), session_id)
                if found.values.get(service_id) is not None:
                    return found
                unreadable |= found.unreadable
            return Found({}, unreadable)

        return await trio.to_thread.run_sync(look, limiter=self._limiter)

    async def remove(self, service_id: str) -> None:
        """Also what was set aside of a journal that is not there any more."""
        await trio.to_thread.run_sync(copies.remove, self.path(service_id), limiter=self._limiter)

    def path(self, service_id: str) -> Path:
        return self._directory / f"{service_id}.db"


def ask_files(directory: Path, do: Do, of: Options, *args: object, **options: object) -> Found[Any]:
    """What `do` gives for the files of these services that there are, and why others cannot be read.

    Blocks. Raises `InvalidRequest`.
    """
    found: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    for service_id, more in of.items():
        path = directory / f"{service_id}.db"
        if not path.exists():
            continue
        try:
            found[service_id] = do(path, *args, **options, **more)
        except StorageError as error:
            unreadable[service_id] = str(error)
    return Found(found, unreadable)


def services_in(directory: Path) -> Sequence[str]:
    """The ids of those that have a file there."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return ()
    return sorted(name[:-3] for name in names if name.endswith(".db"))


def _each(services: Collection[str]) -> Options:
    return {service_id: {} for service_id in services}
