"""Answers that go on: events to resume, logs to follow, listeners that live with their request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest
import trio

from agentmgr.api import serve_api, server
from agentmgr.client import ManagerClient
from agentmgr.client.http import Lines, request
from agentmgr.errors import PortNotAvailable
from agentmgr.manager import AgentManager
from agentmgr.supervisor.log_file import LogFile
from agentmgr.supervisor.logs import rotate
from tests.log_tail import tail


@asynccontextmanager
async def events(
    url: str, query: str = "", headers: dict[str, str] | None = None
) -> AsyncIterator[AsyncIterator[tuple[int, str, Any]]]:
    """The events of a stream, as (id, kind, data)."""
    found: dict[str, str] = {}

    def parse(line: bytes) -> tuple[int, str, Any] | None:
        name, _, value = line.decode().partition(": ")
        if line:
            found[name] = value
            return None
        event = (int(found.get("id", 0)), found.get("event", ""), json.loads(found.get("data", "null")))
        found.clear()
        return event

    with trio.fail_after(60):
        async with request(url, "GET", f"/api/v1/events?{query}", headers=headers or {}) as response:
            assert response.status == 200
            stream = Lines(response, parse)
            assert (await anext(stream))[2] is None  # a comment: from now on nothing is missed
            yield stream


async def make(http: httpx2.AsyncClient, name: str) -> None:
    assert (await http.post("/routing/rules", json={"name": name})).status_code == 201


async def test_events_come_as_they_happen(http: httpx2.AsyncClient, url: str) -> None:
    async with events(url) as stream:
        await make(http, "one")
        number, kind, data = await anext(stream)
        assert kind == data["kind"] == "rule.created"
        assert data["event_id"] == number
        assert data["detail"]["name"] == "one"


@pytest.mark.parametrize("by", ["query", "header"])
async def test_a_client_that_comes_back_misses_nothing_and_gets_nothing_twice(
    http: httpx2.AsyncClient, url: str, by: str
) -> None:
    async with events(url) as stream:
        await make(http, "seen")
        last, _, _ = await anext(stream)
    for name in ("missed", "missed-too"):
        await make(http, name)
    if by == "query":
        again = events(url, f"since={last}")
    else:
        again = events(url, headers={"Last-Event-ID": str(last)})
    async with again as stream:
        await make(http, "live")
        names = [(await anext(stream))[2]["detail"]["name"] for _ in range(3)]
    assert names == ["missed", "missed-too", "live"]


async def test_what_has_happened_can_be_read_without_waiting(http: httpx2.AsyncClient, url: str) -> None:
    await make(http, "one")
    async with events(url, "since=0&follow=false") as stream:
        assert [kind async for _, kind, _ in stream] == ["rule.created"]


async def test_the_end_of_the_server_ends_the_streams_at_once(
    manager: AgentManager, agent_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(server.serve.__kwdefaults__, "limits", server.ServerLimits(grace=600))
    await manager.register_service("x", agent_file)
    async with trio.open_nursery() as nursery:
        serving = trio.CancelScope()

        async def serve(*, task_status: trio.TaskStatus[int]) -> None:
            with serving:
                await serve_api(manager, port=0, task_status=task_status)

        url = f"http://localhost:{await nursery.start(serve)}"
        logs = request(url, "GET", "/api/v1/services/x/logs?follow=true", headers={})
        async with events(url) as stream, logs as log:
            begin = trio.current_time()
            serving.cancel()
            assert [event async for event in stream] == []
            assert await log.read() == b""
    assert trio.current_time() - begin < 60  # well within the grace


async def test_a_client_that_leaves_a_stream_leaves_nothing_behind(url: str, manager: AgentManager) -> None:
    for _ in range(5):
        async with events(url):
            assert len(manager._live().events._listeners) >= 1
    with trio.fail_after(60):
        while manager._live().events._listeners:
            await trio.lowlevel.checkpoint()


async def test_logs_are_read_by_lines_and_followed(
    http: httpx2.AsyncClient, url: str, manager: AgentManager, agent_file: str
) -> None:
    await http.post("/services", json={"name": "x", "agent_factory_path": agent_file})
    assert (await http.get("/services/x/logs")).text == ""
    log = manager.log_path("x")
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\n")
    response = await http.get("/services/x/logs?tail=2")
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.text == "two\nthree\n"
    async with request(url, "GET", "/api/v1/services/x/logs?tail=1&follow=true", headers={}) as followed:
        with trio.fail_after(60):
            assert await followed.receive() == b"three\n"
            with log.open("a") as file:
                file.write("four\n")
            assert await followed.receive() == b"four\n"


async def test_the_logs_of_several_instances_are_told_apart(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    await http.post("/services", json={"name": "x", "agent_factory_path": agent_file, "instances": 2})
    for slot in (0, 1):
        log = manager.log_path("x", slot)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"from {slot}\n")
    text = (await http.get("/services/x/logs")).text
    assert text.splitlines() == ["[0] from 0", "[1] from 1"]
    assert (await http.get("/services/x/logs?instance=1")).text == "from 1\n"
    response = await http.get("/services/x/logs?instance=2")
    assert (response.status_code, response.json()["errors"][0]["path"]) == (400, "instance")


async def test_a_tail_is_whole_lines_however_large_the_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"%06d %s\n" % (number, b"x" * 100) for number in range(5000)))
    lines, end = await tail(log, 3)
    assert [line[:6] for line in lines.splitlines()] == [b"004997", b"004998", b"004999"]
    assert end == log.stat().st_size
    assert (await tail(log, 0))[0] == b""
    assert len((await tail(log, 10_000))[0].splitlines()) == 5000
    assert await tail(tmp_path / "none", 5) == (b"", 0)


async def test_following_goes_on_over_a_rotation(tmp_path: Path, nursery: trio.Nursery) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    send, receive = trio.open_memory_channel[bytes](10)
    nursery.start_soon(partial(LogFile(log).follow, send.send, start=log.stat().st_size))
    with trio.fail_after(60):
        with log.open("a") as file:
            file.write("first\n")
        assert await receive.receive() == b"first\n"
        log.rename(tmp_path / "log.1")
        log.write_text("second\n")
        assert await receive.receive() == b"second\n"


@pytest.mark.parametrize("where", ["/dev/shm", None])
async def test_who_follows_a_log_that_is_rotated_sees_each_line_once(
    on_disk: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, where: str | None
) -> None:
    """On a file system that can cut off a file's front, and on one that can only make holes (tmpfs)."""
    if where is not None and not Path(where).is_dir():
        pytest.skip("no /dev/shm on this machine")
    for module in ("log_file", "log_source"):
        monkeypatch.setattr(f"agentmgr.supervisor.{module}.POLL_S", 0.01)
    with TemporaryDirectory(dir=where or on_disk) as directory:
        log, seen = Path(directory, "0.log"), b""
        log.write_bytes(b"before\n")
        send, receive = trio.open_memory_channel[bytes](0)
        follower = partial(LogFile(log).follow, send.send, start=(await tail(log, 1))[1])
        nursery.start_soon(follower)
        with log.open("ab", buffering=0) as file, trio.fail_after(60):

            async def see(end: bytes) -> None:
                nonlocal seen
                while not seen.endswith(end):
                    seen += await receive.receive()

            for number in range(8):
                file.write(b"".join(b"%d %09d\n" % (number, line) for line in range(1000)))
                if number % 2:  # else it is rotated away before the follower has looked
                    await see(b"%d %09d\n" % (number, 999))
                assert rotate(log, 2**13, 3)
                file.write(b"%d after\n" % number)
                await see(b"%d after\n" % number)
        lines = [line for line in seen.splitlines() if not line.endswith(b"after")]
        for index, line in enumerate(lines):
            assert line == b"%d %09d" % divmod(index, 1000)
        assert len(lines) == 8000
        last, _ = await tail(log, 10_000)
        assert last.endswith(b"7 after\n")
        assert b"\0" not in last


async def test_a_listener_lives_as_long_as_its_request(client: ManagerClient, manager: AgentManager) -> None:
    async with client.open_listener("api", "localhost", 0) as (port, _):
        async with httpx2.AsyncClient(timeout=60) as http:
            assert (await http.get(f"http://localhost:{port}/health")).status_code == 200
        assert {"kind": "api", "host": "localhost", "port": port, "tls": False} in manager.get_info()[
            "listeners"
        ]
    with trio.fail_after(60):
        while manager.get_info()["listeners"]:
            await trio.lowlevel.checkpoint()


async def test_a_listener_on_a_taken_port_is_refused(client: ManagerClient) -> None:
    async with client.open_listener("proxy", "localhost", 0) as (port, _):
        with pytest.raises(PortNotAvailable, match=str(port)):
            async with client.open_listener("proxy", "localhost", port):
                pass


async def test_what_happens_while_the_past_is_read_comes_once(
    http: httpx2.AsyncClient, url: str, manager: AgentManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = manager.get_events

    async def read_late(**options: Any) -> Any:
        monkeypatch.undo()
        await make(http, "in-between")  # the stream is subscribed, and has not read yet
        return await read(**options)

    monkeypatch.setattr(manager, "get_events", read_late)
    async with events(url, "since=0") as stream:
        first = await anext(stream)
        await make(http, "after")
        second = await anext(stream)
    assert [event[2]["detail"]["name"] for event in (first, second)] == ["in-between", "after"]
