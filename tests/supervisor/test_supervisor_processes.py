"""The supervisor with real processes and real handshakes."""

import json
import os
import signal
import sys

import pytest
import trio
from trio_websocket import open_websocket_url

from agentmgr.errors import PortNotAvailable, ServiceFailedToStart
from agentmgr.models import HealthStatus, ServiceConfig, ServiceSpec, ServiceStatus


async def test_start_returns_when_a_real_client_is_served_and_stop_when_nothing_is_left(
    supervisor, journal, command, alive
):
    async with supervisor() as s:
        spec = command()
        await s.start(spec)
        (instance,) = s.instances()
        assert instance.status is ServiceStatus.RUNNING
        assert instance.health is HealthStatus.HEALTHY
        assert journal.records[instance.instance_id].pid == instance.pid
        async with open_websocket_url(f"ws://127.0.0.1:{instance.port}/") as ws:
            await ws.send_message("hello")
            assert await ws.get_message() == "hello"
        await s.stop(spec.service_id)
        assert not alive(instance.pid)
        assert s.instances() == ()
        assert journal.records == {}
    assert journal.statuses() == ["starting", "running", "draining", "stopping", "stopped"]


async def test_a_hosted_agent_inherits_its_socket_and_proves_itself(supervisor, journal, hosted):
    async with supervisor() as s:
        await s.start(hosted())
        (instance,) = s.instances()
        assert instance.status is ServiceStatus.RUNNING


async def test_a_hosted_agent_without_the_proof_is_never_ready(supervisor, hosted):
    async with supervisor() as s:
        with pytest.raises(ServiceFailedToStart, match=r"not ready within 0\.5 s"):
            await s.start(hosted("--wrong-proof", startup_timeout=0.5))


async def test_kill_9_is_followed_by_a_restart_at_the_same_address(supervisor, journal, command):
    async with supervisor() as s:
        await s.start(command())
        (first,) = s.instances()
        os.kill(first.pid, signal.SIGKILL)
        await journal.until(
            lambda: s.instances()[0].pid != first.pid and s.instances()[0].status == "running"
        )
        (second,) = s.instances()
        assert (second.instance_id, second.port) == (first.instance_id, first.port)
        assert second.restart_count == 1
        assert second.last_exit == "SIGKILL"
    assert journal.statuses()[:5] == ["starting", "running", "backoff", "starting", "running"]
