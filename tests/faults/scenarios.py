"""The faults that are drawn at random: some rounds for the tests, many for `python -m tests.faults`."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import trio
import trio.testing

from agentmgr.errors import AgentManagerError, ServiceFailedToStart
from agentmgr.models import Instance, ServiceStatus
from agentmgr.supervisor import Supervisor
from tests.proxy.conftest import connected

Counts = Counter[str]


async def kill_instances(
    s: Supervisor, recorder: Any, make: list[Callable[..., Any]], rounds: int, random: Random
) -> Counts:
    """Kills instances at random, several at once too; the others keep their pids and their open sessions."""
    count: Counts = Counter()
    specs = [
        make[i % len(make)](name=f"svc{i}", max_restart_count=10**6, restart_delay_max=0.2) for i in range(6)
    ]
    async with trio.open_nursery() as nursery:
        for spec in specs:
            nursery.start_soon(s.start, spec)

    def views() -> dict[str, Any]:
        return {view.service_id: view for view in s.instances()}

    for _ in range(rounds):
        before = views()
        victims = random.sample(specs, random.randint(1, 3))
        witness = random.choice([spec for spec in specs if spec not in victims])
        port = before[witness.service_id].port
        async with connected(f"ws://127.0.0.1:{port}/") as session:
            for victim in victims:
                await trio.sleep(random.uniform(0, 0.02))
                os.kill(before[victim.service_id].pid, signal.SIGKILL)
                count["kills of instances"] += 1

            def back(before=before, victims=victims) -> bool:
                now = views()
                return all(
                    now[v.service_id].status is ServiceStatus.RUNNING
                    and now[v.service_id].pid != before[v.service_id].pid
                    for v in victims
                )

            await recorder.until(back)
            await session.send_message("did you notice?")
            assert await session.get_message() == "did you notice?"
        after = views()
        for spec in specs:
            if spec not in victims:
                assert after[spec.service_id].pid == before[spec.service_id].pid
            assert after[spec.service_id].port == before[spec.service_id].port
    return count


MEETINGS = [  # the first rounds, each command given while those before it are under way; others are drawn
    ["rolling restart", "rolling restart", "rolling restart"],
    ["rolling restart", "rolling restart", "stop"],
    ["start", "start", "start"],
]


async def commands_at_once(
    s: Supervisor,
    recorder: Any,
    make: Callable[..., Any],
    descendants: Callable[[], list[int]],
    rounds: int,
    random: Random,
) -> Counts:
    """Start, stop, restart and kill -9 of one service from several sides.

    A slot never has three, nothing runs after a stop that nobody has asked to start after, and at the end of
    each round the last command decides.
    """
    count: Counts = Counter()
    spec = make(
        name="contested", max_restart_count=10**6, restart_delay=0, restart_delay_max=0.2, stop_timeout=2
    )
    given: list[str] = []

    async def one(command: str, delay_s: float) -> None:
        await trio.sleep(delay_s)
        count[command] += 1
        if command != "kill":
            given.append(command)
        with suppress(AgentManagerError):
            if command == "start":
                await s.start(spec, wait=random.random() < 0.5)
            elif command == "stop":
                await s.stop(spec.service_id, force=random.random() < 0.5)
            elif "restart" in command:
                await s.restart(spec, rolling="rolling" in command or random.random() < 0.5)
            else:
                for view in s.instances(spec.service_id):
                    if view.pid is not None:
                        with suppress(ProcessLookupError):
                            os.kill(view.pid, signal.SIGKILL)

    for number in range(rounds):
        if number < len(MEETINGS):
            await s.start(spec)
            commands = [(command, 0.0) for command in MEETINGS[number]]
        else:
            drawn = random.choices(["start", "stop", "restart", "kill"], k=random.randint(2, 8))
            commands = [(command, random.uniform(0, 0.15)) for command in drawn]
        given.clear()
        seen = len(recorder.history)
        async with trio.open_nursery() as nursery:
            for command, delay_s in commands:
                nursery.start_soon(one, command, delay_s)
                if number < len(MEETINGS):
                    await trio.testing.wait_all_tasks_blocked()
        assert most_at_once(recorder.history[seen:]) <= 2, commands
        if given[-1:] == ["stop"]:
            assert s.instances(spec.service_id) == (), commands
            assert descendants() == [], commands
        if random.random() < 0.5:
            with suppress(ServiceFailedToStart):  # the one that was starting had just been killed
                await s.start(spec)
            # The last kill may not have been noticed yet: then what is shown is about to change.
            await recorder.until(
                lambda: (
                    [(view.status, view.pid) for view in s.instances(spec.service_id)]
                    == [(ServiceStatus.RUNNING, pid) for pid in descendants()]
                )
            )
            (_,) = s.instances(spec.service_id)
        else:
            await s.stop(spec.service_id)
            assert s.instances(spec.service_id) == ()
            assert descendants() == []
        count["rounds"] += 1
    return count


def most_at_once(history: list[Instance]) -> int:
    """Of one slot, how many instances had a process at the same time."""
    alive: set[str] = set()
    most = 0
    for view in history:
        alive = alive | {view.instance_id} if view.pid is not None else alive - {view.instance_id}
        most = max(most, len(alive))
    return most
