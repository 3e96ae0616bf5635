"""Logs on nodes read as local ones do: real files and a real daemon, over memory streams.

The contract of `LogSource` is that of a file of this machine: `LogFile` on the same file says what is right.
"""

import os
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing

from agentmgr.errors import WrongState
from agentmgr.models import ServiceConfig, ServiceSpec
from agentmgr.node import logs as node_logs
from agentmgr.supervisor import log_times
from agentmgr.supervisor.log_file import LogFile
from agentmgr.supervisor.log_source import Selection
from agentmgr.supervisor.tail import show
from tests.cluster.few_nodes import Nodes

SPEC = ServiceSpec("svc", ServiceConfig(agent_factory_path="agent.py"))


@pytest.fixture
async def nodes(tmp_path, nursery):
    return Nodes(tmp_path, nursery)


async def test_each_way_to_read_gives_what_the_file_gives(nodes, monkeypatch):
    monkeypatch.setattr(node_logs, "MAX_ANSWER_BYTES", 20_000)
    await nodes.start("b")
    path = nodes.file("b")
    path.write_bytes(
        b"".join(b"%d \xff %s\n" % (number, b"x" * (number % 60)) for number in range(6000)) + b"no end"
    )
    nodes.launcher.placed.put("ins", SPEC.service_id, 0, "b")
    there, here = nodes.launcher.open_log(SPEC, 0), LogFile(path)
    begin, end = await here.extent()
    assert await there.extent() == (begin, end) != (0, 0)
    long_ago = datetime(2000, 1, 1, tzinfo=UTC)
    for wanted in (
        Selection(),
        Selection(0),
        Selection(None),
        Selection(5000),
        Selection(5, grep=r"^99\d\d .*x$"),
        Selection(None, since=long_ago),
        Selection(None, since=datetime.now(UTC) + timedelta(hours=1)),
    ):
        found, at = await there.last(wanted, 2**24)
        right, end = await here.last(wanted, 2**24)
        assert ([line.data for line in found], at) == ([line.data for line in right], end)
    assert sum(len(line.data) for line in (await there.last(Selection(None), 50_000))[0]) < 150_000
    for positions in ({}, {"at": 5000}, {"after": 5000}, {"before": 5000}):
        assert await there.window(7, **positions) == await here.window(7, **positions)
    assert await there.search("99 ", 5) == await here.search("99 ", 5)
    assert await there.search("99 ", 5, before=5000) == await here.search("99 ", 5, before=5000)
    assert await there.read(10, 50) == await here.read(10, 50)
    none = nodes.launcher.open_log(SPEC, 7)
    assert await none.last(Selection(), 100) == ([], 0)


async def test_following_goes_on_over_a_broken_link_and_to_another_node(nodes, nursery):
    await nodes.start("b")
    await nodes.start("c")
    path, elsewhere = nodes.file("b"), nodes.file("c")
    path.write_bytes(b"before\n")
    elsewhere.write_bytes(b"of an earlier stay\n")
    hour_ago = datetime.now().timestamp() - 3600
    os.utime(elsewhere, (hour_ago, hour_ago))
    log_times.note(elsewhere, elsewhere.stat())
    nodes.launcher.placed.put("ins", SPEC.service_id, 0, "b")
    send, receive = trio.open_memory_channel[bytes](0)
    source = nodes.launcher.open_log(SPEC, 0)
    _, end = await source.last(Selection(), 1000)

    async def follow() -> None:
        await source.follow(send.send, start=end)

    nursery.start_soon(follow)
    with path.open("ab", buffering=0) as file, trio.fail_after(30):
        file.write(b"one\n")
        assert await receive.receive() == b"one\n"
        await nodes.cut("b")
        file.write(b"two\n")
        nodes.mend("b")
        assert await receive.receive() == b"two\n"
        nodes.launcher.placed.put("ins", SPEC.service_id, 0, "c")
        with elsewhere.open("ab", buffering=0) as other:
            other.write(b"three\n")
            assert await receive.receive() == b"three\n"
            other.write(b"four\n")
            assert await receive.receive() == b"four\n"


async def test_a_node_that_is_silent_is_named_and_the_others_are_shown(nodes):
    await nodes.start("b")
    nodes.file("b").write_bytes(b"there\n")
    nodes.file("manager", 1).write_bytes(b"here\n")
    nodes.launcher.placed.put("ins", SPEC.service_id, 0, "b")
    nodes.launcher.placed.put("other", SPEC.service_id, 1, "")
    sources = {str(position): nodes.launcher.open_log(SPEC, position) for position in range(2)}
    shown: list[bytes] = []

    async def write(data: bytes) -> None:
        shown.append(data)

    await show(sources, write, Selection(), following=False)
    assert sorted(b"".join(shown).splitlines()) == [b"[0] there", b"[1] here"]
    await nodes.cut("b")
    with pytest.raises(WrongState, match="the log is on node b, which cannot be asked now: "):
        await sources["0"].window(10)
    shown.clear()
    await show(sources, write, Selection(), following=False)
    first, second = sorted(b"".join(shown).splitlines())
    assert first.startswith(b"[0] agentmgr: the log is on node b, which cannot be asked now")
    assert second == b"[1] here"
    del nodes.handles["b"]
    with pytest.raises(WrongState, match="was forgotten"):
        await sources["0"].window(10)


async def test_a_manager_that_has_seen_no_instance_finds_the_log_that_was_written_last(nodes):
    await nodes.start("b")
    await nodes.start("c")
    for name, at in (("manager", 100), ("b", 300), ("c", 200)):
        nodes.file(name).write_bytes(name.encode() + b"\n")
        os.utime(nodes.file(name), (at, at))
    source = nodes.launcher.open_log(SPEC, 0)
    assert (await source.window(1)).lines[0].text == "b"
    await nodes.cut("b")
    assert (await source.window(1)).lines[0].text == "c"
    os.utime(nodes.file("manager"), (400, 400))
    assert (await source.window(1)).lines[0].text == "manager"


async def test_a_renamed_service_keeps_its_logs_on_nodes(nodes):
    await nodes.start("b")
    nodes.file("b").write_bytes(b"there\n")
    nodes.launcher.placed.put("ins", SPEC.service_id, 0, "b")
    nodes.launcher.move_logs("svc", "renamed")
    renamed = ServiceSpec("renamed", SPEC.config, service_id=SPEC.service_id)
    assert (await nodes.launcher.open_log(renamed, 0).window(1)).lines[0].text == "there"


async def test_times_are_those_of_the_managers_clock(nodes):
    await nodes.start("b")
    path = nodes.file("b")
    path.write_bytes(b"there\n")
    nodes.handles["b"].clock_skew_s = 3600.0
    ahead = datetime.now().timestamp() + 3600
    os.utime(path, (ahead, ahead))
    nodes.launcher.placed.put("ins", SPEC.service_id, 0, "b")
    source = nodes.launcher.open_log(SPEC, 0)
    for ago, count in ((timedelta(minutes=10), 1), (timedelta(minutes=-10), 0)):
        lines, _ = await source.last(Selection(None, since=datetime.now(UTC) - ago), 1000)
        assert len(lines) == count
        assert all(abs(line.at - datetime.now().timestamp()) < 60 for line in lines)
