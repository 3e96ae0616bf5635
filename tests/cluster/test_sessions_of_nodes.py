"""The sessions that nodes keep are seen and erased as if they were kept here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import evolve

from agentmgr.cluster.remote_sessions import NodeArchive, RemoteSessions
from agentmgr.errors import Conflict, SessionNotFound, StorageError, WrongState
from agentmgr.journal import sqlite_archive
from agentmgr.journal.sqlite import open_journal
from agentmgr.manager.services import refuse_to_erase
from agentmgr.manager.sessions import Sessions
from agentmgr.manager.stored_sessions import StoredSessions
from agentmgr.models import Instance, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.node import protocol
from agentmgr.node.session_archives import SessionArchives, SessionsRead, asks
from agentmgr.testing.agents import bare_client, hosted

SPECS = [ServiceSpec(name, ServiceConfig("agent.py")) for name in ("one", "two")]


class Nodes:
    """Some that answer by what their journals have, over the messages of nodes; `silent` ones do not."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self.of = {node_id: SessionArchives(path) for node_id, path in directories.items()}
        self.silent: set[str] = set()
        self.moved: dict[str, str] = {}

    def archives(self) -> Sequence[NodeArchive]:
        return [self.archive(node_id) for node_id in sorted(self.of)]

    def archive(self, node_id: str) -> NodeArchive:
        itself: Any = self
        return NodeArchive(itself, node_id)

    def nodes_of(self, node_id: str) -> frozenset[str]:
        return frozenset({node_id, self.moved.get(node_id, node_id)})

    def is_moving(self, service_id: str, node_id: str) -> bool:
        return False

    async def settled(self, service_id: str, node_id: str) -> None:
        raise AssertionError("nothing moves")

    def name(self, node_id: str) -> str:
        return node_id.removeprefix("nod_")

    async def read(
        self, node_id: str, do: Callable[..., Any], *args: object, **options: Any
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        if node_id in self.silent:
            raise StorageError("it is silent")
        order = protocol.Numbered("1", asks(do, *args, **options))
        heard = protocol.decode_order(protocol.encode(order))
        answer = protocol.Numbered("1", await self.of[node_id].answer(heard.body))
        said = protocol.decode_report(protocol.encode(answer))
        assert isinstance(said.body, SessionsRead)
        return said.body.values(do), said.body.unreadable


@asynccontextmanager
async def conversing(
    directory: Path, spec: ServiceSpec, place: str, *, asking: bool = False
) -> AsyncIterator[str]:
    """A session there, of a turn or two; within it, it waits for an answer if it is `asking`."""

    async def agent(message: Any, session: Any) -> str:
        if message == "may I?":
            await session.confirm("sure?")
        return f"heard {message} ✓"

    directory.mkdir(exist_ok=True)
    async with open_journal(directory / f"{spec.service_id}.db", place) as journal:
        async with hosted(agent, journal=journal, instance_id=place) as url, bare_client(url) as client:
            await client.ask("hello")
            if asking:
                await client.say("user.message", content="may I?")
                await client.until("agent.user_confirm")
            assert client.session_id is not None
            yield client.session_id


async def converse(directory: Path, spec: ServiceSpec, place: str) -> str:
    async with conversing(directory, spec, place) as session_id:
        return session_id


async def seen(stored: StoredSessions, ids: Sequence[str]) -> list[Any]:
    """All that is shown of them."""
    exports = []
    for session_id in ids:
        async with stored.export(session_id) as lines:
            exports.append([line async for line in lines])
    pages, cursor = [], None
    while True:
        page = await stored.list(limit=1, cursor=cursor)
        assert page.unreadable == ()
        pages += page.items
        if (cursor := page.next_cursor) is None:
            break
    return [
        pages,
        [(await stored.list("one")).items, (await stored.list(text="ses_", limit=2)).items],
        [await stored.get(session_id) for session_id in ids],
        exports,
        await stored.questions(),
        await stored.unfinished(SPECS),
        [(await stored.kept(spec))[0] for spec in SPECS],
    ]


async def test_what_nodes_keep_is_shown_as_if_it_were_kept_here(tmp_path: Path) -> None:
    one, two = SPECS
    here = tmp_path / "here"
    ids = [await converse(here, two, "nod_b.ins_2"), await converse(here, one, "nod_b.ins_1")]
    nodes = Nodes({"nod_b": here, "nod_c": tmp_path / "c"})
    stored = StoredSessions(tmp_path / "nothing", lambda: SPECS, nodes)
    async with conversing(here, one, "nod_b.ins_3", asking=True) as session_id:
        ids.insert(0, session_id)
        # The ids say that they are on b. Without a cluster they are looked for in its own files all the same.
        as_here = await seen(StoredSessions(here, lambda: SPECS), ids)
        assert await seen(stored, ids) == as_here
    assert (len(as_here[0]), len(as_here[4]), as_here[6]) == (3, 1, [2, 1])

    at_head = await converse(tmp_path / "nothing", two, "ins_3")
    assert {info.session_id for info in (await stored.list()).items} == {
        at_head,
        *ids,
    }
    nodes.silent.add("nod_b")
    page = await stored.list()
    assert ([info.session_id for info in page.items], page.unreadable) == (
        [at_head],
        ("node b",),
    )
    with pytest.raises(StorageError, match="silent"):
        await stored.get(ids[0])
    assert await stored.kept(one) == (0, 0, ("node b",))
    with pytest.raises(
        Conflict, match="none can be read now \\(node b\\)"
    ):  # they would be erased when b is back
        refuse_to_erase("one", *await stored.kept(one))
    nodes.silent.clear()
    with pytest.raises(
        Conflict, match=r"2 sessions of 'one' would be erased: .*; `agentmgr sessions export` saves"
    ):
        refuse_to_erase("one", *await stored.kept(one))  # a backup would not have them

    # What was begun on b, and has moved to c.
    nodes.of |= {"nod_b": SessionArchives(tmp_path / "nothing"), "nod_c": SessionArchives(here)}
    nodes.moved["nod_b"] = "nod_c"
    assert (await stored.get(ids[0])).session_id == ids[0]
    nodes.moved.clear()
    with pytest.raises(SessionNotFound):
        await stored.get(ids[0])
    nodes.of |= {"nod_b": SessionArchives(here), "nod_c": SessionArchives(tmp_path / "c")}

    await stored.erase(ids[0])
    with pytest.raises(SessionNotFound):
        await stored.get(ids[0])
    assert sqlite_archive.figures(here / f"{one.service_id}.db").sessions == 1
    kept = ServiceSpec("two", ServiceConfig("agent.py", session_retention=0.001), service_id=two.service_id)
    await trio.sleep(0.01)
    pruned: list[Any] = []
    await StoredSessions(tmp_path / "nothing", lambda: [one, kept], nodes).prune(pruned.append)
    assert sum(event.detail["unused"] for event in pruned) == 2  # that on b, and that of this machine


async def test_who_speaks_in_a_session_of_a_node_without_an_instance_is_told_so_at_once(
    tmp_path: Path,
) -> None:
    one, _ = SPECS
    session_id = await converse(tmp_path / "b", one, "nod_b.ins_1")
    running = Instance("ins_1", one.service_id, 0, ServiceStatus.RUNNING, node_id="nod_c")
    instances = [running]
    of_the_manager: Any = SimpleNamespace(
        services=lambda: SPECS,
        instances=lambda service_id: instances,
        tokens=dict,
        next_table=trio.Event(),
        wake=lambda *args: None,
        is_asleep=lambda spec: False,
    )
    nodes = Nodes({"nod_b": tmp_path / "b"})
    async with trio.open_nursery() as nursery:
        parts: Any = (*[of_the_manager] * 4, None, nursery, nodes)
        sessions = Sessions(tmp_path / "nothing", *parts)
        with (
            trio.fail_after(2),
            pytest.raises(WrongState, match="on node b, where no instance of 'one' runs"),
        ):
            await sessions.say(session_id, "there?")
        instances[:] = [running, evolve(running, slot=1, status=ServiceStatus.STARTING)]  # it may come there
        with trio.move_on_after(0.1) as patience:
            await sessions.say(session_id, "there?")
        assert patience.cancelled_caught


async def test_a_node_that_is_not_linked_is_not_waited_for(tmp_path: Path) -> None:
    remote = RemoteSessions([], lambda node_id: None)
    with pytest.raises(StorageError, match="node nod_b was forgotten"):
        await remote.read("nod_b", sqlite_archive.figures)
    assert remote.name("nod_b") == "nod_b"
