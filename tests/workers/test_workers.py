"""Several processes that serve one gateway, under a manager that lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed

from agentmgr import bootstrap
from agentmgr.core.restart import Again, Cause, Ending, Exit, History, decide
from agentmgr.errors import ManagerError, PortNotAvailable
from agentmgr.models import RoutingRule, RoutingStrategy
from agentmgr.process import detached
from agentmgr.proxy import Certificate
from agentmgr.worker.keeping import STEADY
from tests.processes import alive
from tests.workers.conftest import connected, cut_link, eventually, said


async def test_a_workers_death_costs_its_own_sessions_and_nothing_else(site: Any) -> None:
    async with site() as s:
        clients = await s.clients_of_each()
        victim, survivor = clients
        lost = len(clients[victim])
        os.kill(victim, signal.SIGKILL)
        for websocket in clients[victim]:
            with pytest.raises(ConnectionClosed), trio.fail_after(60):
                await websocket.get_message()
        for websocket in clients[survivor]:
            await said(websocket)
        await eventually(lambda: len(s.manager.list_connections()) == len(clients[survivor]))
        service = s.manager.get_service("counting")
        assert service.active_sessions == len(clients[survivor])
        assert s.manager._live().worker_manager.active(service.service_id) == len(clients[survivor])
        sessions = s.manager.get_service_stats("counting")["sessions"]
        assert (sessions["completed"], sessions["failed"]) == (lost, 0)  # the service did not break them off
        await eventually(lambda: len(s.workers) == 2)  # it is replaced
        assert victim not in {worker.pid for worker in s.workers}
        assert len(await s.clients_of_each()) == 2  # and the new one serves


async def test_sessions_are_seen_and_closed_whoever_serves_them(site: Any) -> None:
    async with site() as s:
        clients = [one for some in (await s.clients_of_each()).values() for one in some]
        for websocket in clients:
            await said(websocket)
        await eventually(lambda: all(c.messages_to_client == 1 for c in s.manager.list_connections()))
        for connection in s.manager.list_connections():
            s.manager.disconnect(connection.connection_id, code=4321, reason="be gone")
        for websocket in clients:
            with pytest.raises(ConnectionClosed) as closed, trio.fail_after(60):
                await websocket.get_message()
            assert (closed.value.reason.code, closed.value.reason.reason) == (4321, "be gone")
        await eventually(lambda: not s.manager.list_connections())
        stats = s.manager.get_service_stats("counting")
        assert stats["sessions"]["completed"] == stats["connections"]["peak"] == len(clients)


async def test_max_sessions_holds_over_all_workers_in_a_storm(site: Any) -> None:
    served = 0

    async with site(max_sessions=3, instances=2) as s:

        async def come_and_go() -> None:
            nonlocal served
            for _ in range(3):
                async with connected(s.url) as websocket:
                    for _ in range(3):
                        answer = await said(websocket)
                    most.setdefault(answer.split()[0], []).append(int(answer.split()[1]))
                    served += 1

        most: dict[str, list[int]] = {}
        await s.each_worker_serves()
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(come_and_go)
        assert served == 90, "whoever had to wait was served in the end"
        assert len(most) == 2
        assert {max(found) for found in most.values()} == {3}, "as many as there may be, and never more"


async def test_a_waiting_client_gets_the_seat_that_another_workers_client_leaves(site: Any) -> None:
    async with site(max_sessions=1) as s:
        first = await s.client()
        answered = trio.Event()

        async def wait_for_a_seat() -> None:
            async with connected(s.url) as websocket:
                await said(websocket)
            answered.set()

        for _ in range(4):  # one of them comes to the other worker, most likely
            answered = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_a_seat)
                await eventually(lambda: s.manager._live().worker_manager._ledger._asks)
                assert not answered.is_set()
                await first.aclose()
            first = await s.client()


async def test_a_rule_that_was_made_holds_in_every_worker(site: Any) -> None:
    async with site() as s:
        kept = await s.client()
        await s.manager.create_routing_rule(RoutingRule("away", target_services=("nobody",)))
        for _ in range(12):
            assert await s.refusal() == 503
        await s.manager.delete_routing_rule("away")
        await s.clients_of_each()
        await said(kept)


async def test_a_named_session_is_found_again_through_any_worker(site: Any) -> None:
    async with site(instances=2) as s:
        rule = RoutingRule("any", target_strategy=RoutingStrategy.WEIGHTED_RANDOM)
        await s.manager.create_routing_rule(rule)
        async with connected(f"{s.url}/?session_id=mine") as websocket:
            holder = (await said(websocket)).split()[0]
        clients = await s.clients_of_each("/?session_id=mine")
        for some in clients.values():
            for websocket in some:
                assert (await said(websocket)).split()[0] == holder


async def test_a_rolling_restart_drains_every_worker(site: Any) -> None:
    async with site(drain_timeout=5, drain_idle=1) as s:
        clients = await s.clients_of_each()
        before = (await said(clients[next(iter(clients))][0])).split()[0]
        await s.manager.restart_service("counting")
        for some in clients.values():
            for websocket in some:
                with pytest.raises(ConnectionClosed) as closed, trio.fail_after(60):
                    await websocket.get_message()
                assert closed.value.reason.code == 1012
        assert (await said(await s.client())).split()[0] != before


async def test_a_token_that_was_made_is_asked_for_by_every_worker(site: Any) -> None:
    async with site() as s:
        _, key = await s.manager.create_token("app", ["connect"])
        for _ in range(8):
            assert await s.refusal() == 401
        bearer = [("Authorization", f"Bearer {key}")]
        async with connected(s.url, extra_headers=bearer) as websocket:
            await said(websocket)
        ticket = s.manager.create_ticket().ticket
        await said(await s.client(f"/?ticket={ticket}"))
        assert await s.refusal(f"/?ticket={ticket}") == 401
        await s.manager.delete_token("app")
        for _ in range(8):
            assert await s.refusal() == 401, "its deletion opens nothing"
        await s.manager.require_tokens(gateway=False)
        await said(await s.client())


async def test_the_end_closes_every_session_with_1001_and_leaves_no_process(site: Any) -> None:
    async with site(drain_idle=1) as s:
        clients = await s.clients_of_each()
        pids = list(clients)
        s.manager.request_shutdown()
        for some in clients.values():
            for websocket in some:
                with pytest.raises(ConnectionClosed) as closed, trio.fail_after(60):
                    await websocket.get_message()
                assert closed.value.reason.code == 1001
    assert not any(alive(pid) for pid in pids)


async def test_at_the_end_who_talks_may_finish_and_who_is_idle_is_told_1001(site: Any) -> None:
    async with site(drain_timeout=600, drain_idle=1) as s:
        quiet, busy = await s.client(), await s.client()
        for websocket in (quiet, busy):
            await said(websocket)
        over = trio.Event()

        async def wait_for_the_end(websocket: Any) -> None:
            with pytest.raises(ConnectionClosed) as closed, trio.fail_after(60):
                await websocket.get_message()
            assert closed.value.reason.code == 1001
            over.set()

        s.manager.request_shutdown()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_the_end, quiet)
            while not over.is_set():
                await said(busy)
        await said(busy)
        assert await s.refusal() == 503
        await wait_for_the_end(busy)


async def test_in_a_hurry_the_end_waits_for_nobody(site: Any) -> None:
    async with site(workers=1, drain_timeout=600) as s:
        busy = await s.client()
        s.manager.request_shutdown()
        await eventually(lambda: s.manager._live().worker_manager._drains)
        await said(busy)
        s.manager.hurry()
        with pytest.raises(ConnectionClosed), trio.fail_after(60):
            while True:
                await said(busy)


async def test_a_worker_that_missed_the_drain_hears_of_it_when_it_is_back(site: Any) -> None:
    async with site(workers=1, drain_timeout=600, drain_idle=1) as s:
        websocket, worker_manager = await s.client(), s.manager._live().worker_manager
        await said(websocket)
        (worker,) = s.workers
        async with trio.open_nursery() as nursery:
            os.kill(worker.pid, signal.SIGSTOP)
            try:
                cut_link(worker.pid)
                await eventually(lambda: worker.link is None)
                nursery.start_soon(s.manager.restart_service, "counting")
                await eventually(lambda: worker_manager._drains)
            finally:
                os.kill(worker.pid, signal.SIGCONT)
            with pytest.raises(ConnectionClosed) as closed, trio.fail_after(60):
                await websocket.get_message()
            assert closed.value.reason.code == 1012


async def test_a_second_gateway_leaves_the_workers_of_the_first_alone(site: Any) -> None:
    async with site() as s:
        before = {worker.pid for worker in s.workers}
        for workers in (None, 1):
            with pytest.raises(PortNotAvailable):
                await s.manager.serve_proxy("localhost", s.port, workers=workers)
        async with trio.open_nursery() as nursery:
            port = await nursery.start(partial(s.manager.serve_proxy, "localhost", 0, workers=1))
            assert port != s.port
            nursery.cancel_scope.cancel()
        assert before <= {worker.pid for worker in s.workers}


async def test_a_list_of_processes_shows_where_workers_serve_and_no_settings(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detached, "subprocess", subprocess)  # started as users' are
    async with site() as s:
        for worker in s.workers:
            words = Path(f"/proc/{worker.pid}/cmdline").read_text().split("\0")
            assert words[1:] == [*bootstrap.words("agentmgr.worker")[1:], f"localhost:{s.port}", ""]


async def test_workers_that_cannot_start_say_why(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detached, "subprocess", subprocess)  # started as users' are
    async with site() as s:
        certificate = Certificate.__new__(Certificate)  # its file has gone since it was read
        certificate._certfile, certificate._keyfile = tmp_path / "gone.pem", None
        with pytest.raises(ManagerError, match=r"did not start: .*gone\.pem"):
            await s.manager.serve_proxy("localhost", 0, certificate=certificate, workers=1)
        speechless = tmp_path / "python"
        speechless.write_text("#!/bin/sh\nkill -9 $$\n")
        speechless.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(speechless))
        with pytest.raises(ManagerError, match="did not start: SIGKILL"):
            await s.manager.serve_proxy("127.0.0.1", 0, workers=1)


def test_a_worker_that_cannot_start_is_tried_ever_more_rarely() -> None:
    history, delays = History(), []
    for _ in range(12):
        again = decide(STEADY, history, Ending(Cause.EXITED, "it fell", Exit(code=1)), now=0, rand=0.5)
        assert isinstance(again, Again)
        delays.append(again.delay_s)
        history = again.history
    assert delays[0] <= 0.1
    assert delays == sorted(delays)
    assert delays[-1] == 30
