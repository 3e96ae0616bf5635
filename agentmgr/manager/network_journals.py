"""A manager and its network journals: the connections, and what it says there of instances that have ended.

`coredis` is imported where the first of them is used.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import define, field, frozen

from ..errors import AgentManagerError, StorageError
from ..journal.archive import Archive, ArchiveFigures
from ..journal.holders import holder_of
from ..models import InstanceRecord, Service, ServiceConfig, ServiceSpec
from ..models.fields import invalid
from ..models.network_journal import expanded, shown
from ..replacing import replace

if TYPE_CHECKING:
    from ..journal.redis_connection import Redis, RedisAddress
    from .doctor import Finding

log = logging.getLogger(__name__)

FILE = "network.json"  #: beside the journals that are files
LOOK_S = 10.0  #: between looks at each
RETRY_S = 1.0
_ADVICE = (
    "see whether Redis runs and can be reached from here; sessions go on in the memory of their instances, "
    "and are written once it can"
)
MOST_ENDED = 10_000  #: instances that are remembered until a journal can be told of their end


@frozen
class _Run:
    """One process of an instance that has its sessions in a network journal."""

    url: str
    service_id: str
    holder: str


@define(eq=False)
class _Known:
    """What was seen of one journal."""

    trouble: str | None = None
    reached: bool = False  #: ever, by this manager
    figures: Mapping[str, ArchiveFigures] = field(factory=dict)  #: by service id
    redis: Redis | None = None  #: while `run` keeps it open
    gone: trio.Event = field(factory=trio.Event)  #: it is not needed any more


class NetworkJournals:
    """`services`: all; `default`: the URL of the manager's own setting. Without `run`, each question opens a
    connection of its own.

    A journal that is in use no more is remembered in a file of `directory` as long as it has sessions: they
    are shown, and go on when the setting is changed back.
    """

    def __init__(
        self, default: str | None, services: Callable[[], Iterable[ServiceSpec | Service]], directory: Path
    ) -> None:
        self._default, self._services = default, services
        self._file = directory / FILE
        self._remembered = _read(self._file)
        self._known: dict[str, _Known] = {}  # by URL
        self._runs: dict[str, _Run] = {}  # by instance id
        self._ended: dict[_Run, None] = {}
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._opening = trio.Lock()

    def url_of(self, config: ServiceConfig) -> str | None:
        return config.journal_url(self._default)

    def shown(self, config: ServiceConfig) -> str | None:
        url = self.url_of(config)
        return None if url is None else shown(url)

    def urls(self) -> Sequence[str]:
        """Of all that are in use, or were."""
        return sorted(self._in_use() | self._remembered)

    def _in_use(self) -> frozenset[str]:
        found = {self._default} | {self.url_of(spec.config) for spec in self._services()}
        return frozenset(url for url in found if url is not None)

    def archives(self) -> Sequence[Archive]:
        if not (urls := self.urls()):
            return ()
        from ..journal.redis_archive import RedisArchive

        return [RedisArchive(shown(url), partial(self._connected, url)) for url in urls]

    def troubles(self) -> tuple[str, ...]:
        return tuple(
            f"the journal in {shown(url)}: {known.trouble}"
            for url, known in self._known.items()
            if known.trouble is not None
        )

    def figures(self) -> Mapping[str, ArchiveFigures]:
        """As they were a moment ago, by service id."""
        return {key: one for known in self._known.values() for key, one in known.figures.items()}

    async def examine(self) -> list[Finding]:
        """Of each: whether it can be asked, and whether sessions are safe there; for `agentmgr doctor`."""
        from .doctor import Finding

        findings: list[Finding] = []
        for url in self.urls():
            what = f"sessions in {shown(url)}"
            try:
                from ..journal.redis_look import look_at

                async with self._asked(url) as redis:
                    remarks = await look_at(redis)
            except (StorageError, AgentManagerError) as error:
                findings.append(Finding(what, "error", error.message, _ADVICE))
                continue
            findings += (Finding(what, "warning", remark) for remark in remarks)
            if not remarks:
                findings.append(Finding(what, "ok", "it answers, and keeps what is written to it"))
        return findings

    # Instances

    def runs(self, record: InstanceRecord, config: ServiceConfig) -> None:
        """It was launched, or is known from before."""
        if (url := self.url_of(config)) is not None:
            holder = holder_of(record.instance_id, record.token)
            self._runs[record.instance_id] = _Run(url, record.service_id, holder)
            if url not in self._remembered:
                self._remember()

    def ended(self, instance_id: str) -> None:
        """Another instance may take up what it had at once, instead of when its lease is over."""
        if (run := self._runs.pop(instance_id, None)) is not None and len(self._ended) < MOST_ENDED:
            self._ended[run] = None
            self._news.set()

    # Their connections

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps connections open, and looks after the journals, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._keep_looking)
            task_status.started()
            try:
                while True:
                    await self._news.wait()
                    self._news = trio.Event()
                    if not await self._revoke():
                        await trio.sleep(RETRY_S)
                        self._news.set()
            finally:
                self._nursery = None

    async def _revoke(self) -> bool:
        """Whether all journals know of all instances that have ended."""
        from ..journal.redis_keys import Keys
        from ..journal.redis_leases import revoke

        by_place: dict[tuple[str, str], list[_Run]] = {}
        for run in self._ended:
            by_place.setdefault((run.url, run.service_id), []).append(run)
        failed = set[str]()
        for (url, service_id), runs in by_place.items():
            if url in failed:
                continue
            try:
                async with self._asked(url) as redis:
                    keys = Keys(service_id, redis.address.prefix)
                    await revoke(redis, keys, *(run.holder for run in runs))
            except StorageError as error:
                log.debug("%s", error)
                failed.add(url)
                continue
            for run in runs:
                del self._ended[run]
        return not failed

    async def _keep_looking(self) -> None:
        while True:
            for url in self.urls():
                known = self._known.setdefault(url, _Known())
                before = known.trouble
                try:
                    known.figures = await self._look(url, [spec.service_id for spec in self._services()])
                    known.trouble, known.reached = None, True
                except StorageError as error:
                    known.trouble = error.message
                if known.trouble != before:
                    said = known.trouble or "it works again"
                    log.log(logging.ERROR if known.trouble else logging.INFO, "%s: %s", shown(url), said)
            self._remember()
            await trio.sleep(LOOK_S)

    def _remember(self) -> None:
        in_use = self._in_use()
        empty = {
            url
            for url, known in self._known.items()
            if known.trouble is None and not any(one.sessions for one in known.figures.values())
        }
        # What was never reached, and that no instance was given, is mistyped: nothing can be there.
        used = {url for url, known in self._known.items() if known.reached}
        used |= {run.url for run in self._runs.values()}
        remembered = (in_use & used) | (self._remembered - (empty - in_use))
        if remembered != self._remembered:
            try:
                _write(self._file, remembered)
            except OSError as error:
                log.error("%s cannot be written: %s", self._file, error.strerror)
                return
            self._remembered = remembered
        for gone in self._known.keys() - remembered - in_use:
            self._known.pop(gone).gone.set()

    async def _look(self, url: str, services: Sequence[str]) -> Mapping[str, ArchiveFigures]:
        from ..journal.redis_archive import RedisArchive
        from ..journal.redis_look import loses_sessions

        async with self._asked(url) as redis:
            if (why := await loses_sessions(redis)) is not None:
                raise StorageError(why)
        return (await RedisArchive(shown(url), partial(self._connected, url)).figures(services)).values

    @asynccontextmanager
    async def _asked(self, url: str) -> AsyncIterator[Redis]:
        """Raises `StorageError`."""
        from ..journal.redis_connection import RedisTrouble

        async with self._connected(url) as redis:
            try:
                yield redis
            except RedisTrouble as trouble:
                raise StorageError(str(trouble)) from trouble

    @asynccontextmanager
    async def _connected(self, url: str) -> AsyncIterator[Redis]:
        """Raises `StorageError` where the URL cannot be used."""
        try:
            from ..journal.redis_connection import RedisAddress, open_redis

            address = RedisAddress.parse(expanded(url, os.environ))
        except AgentManagerError as error:
            raise StorageError(f"the journal {shown(url)}: {error.message}") from error
        if self._nursery is None:
            async with open_redis(address) as redis:
                yield redis
            return
        known = self._known.setdefault(url, _Known())
        async with self._opening:
            if known.redis is None:
                known.redis = await self._nursery.start(_keep_open, address, known.gone)
        yield known.redis


def check_url(name: str, url: str | None) -> None:
    """Raises `InvalidRequest` where the journal of this field or setting cannot be used from here."""
    if url is None:
        return
    try:
        from ..journal.redis_connection import RedisAddress

        RedisAddress.parse(expanded(url, os.environ))
    except AgentManagerError as error:  # a variable is not set, or a package is missing
        raise invalid(name, f"cannot be used: {error.message}") from None


async def _keep_open(address: RedisAddress, gone: trio.Event, *, task_status: trio.TaskStatus[Redis]) -> None:
    from ..journal.redis_connection import open_redis

    async with open_redis(address) as redis:
        task_status.started(redis)
        await gone.wait()


def _read(file: Path) -> frozenset[str]:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError) as error:
        log.error("%s cannot be read: %s", file, error)
        return frozenset()
    return frozenset(url for url in found if isinstance(url, str)) if isinstance(found, list) else frozenset()


def _write(file: Path, urls: Iterable[str]) -> None:
    """For its owner only: there may be a password in one."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace(file, json.dumps(sorted(urls)).encode(), lasting=True)
