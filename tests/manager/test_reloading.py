"""When services run what was saved, on a clock that the test has; the saves are the test's."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from agentmgr.manager import reloading
from agentmgr.manager.events import EventLog
from agentmgr.manager.registry import Registry
from agentmgr.manager.reloading import Reloads, watched
from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec
from agentmgr.process.watching import Watched
from agentmgr.supervisor import Supervisor
from agentmgr.testing import Behaviour, FakeLauncher, MemoryStore


class World:
    """One service that is watched; `save` is a save of its file, `fails` why it cannot be watched now."""

    def __init__(self, launcher: FakeLauncher) -> None:
        self.launcher, self.store = launcher, MemoryStore()
        config = ServiceConfig(command=("x",), cwd="/x", watch=("auto",), auto_restart=False)
        self.spec = ServiceSpec("a", config, desired_status=DesiredStatus.RUNNING)
        self.fails: OSError | None = None
        self._saved: Callable[[str, str], None] | None = None
        self.said: list[tuple[str, bool]] = []  # to the service's hook

    def reload_failed(self, spec: ServiceSpec, reason: str, *, serving: bool) -> None:
        self.said.append((reason, serving))

    def save(self) -> None:
        assert self._saved is not None
        self._saved(self.spec.service_id, "/x/a.js")

    async def watch(
        self, places: Mapping[str, Any], saved: Callable[[str, str], None], *_: Any, **__: Any
    ) -> None:
        assert places == {self.spec.service_id: (Watched("/x"),)}
        if self.fails is not None:
            raise self.fails
        self._saved = saved
        await trio.sleep_forever()

    def launches(self) -> list[float]:
        return [child.launched_at - self.launcher.children[0].launched_at for child in self.launcher.children]

    async def events(self) -> list[str]:
        return [event.kind for event in await self.store.events() if event.kind.startswith("service.")]

    @asynccontextmanager
    async def reloads(self, monkeypatch: Any) -> AsyncIterator[Reloads]:
        monkeypatch.setattr(reloading, "watch", self.watch)
        await self.store.add_service(self.spec)
        async with Supervisor(log_dir="unused", launcher=self.launcher) as supervisor:
            registry = Registry(self.store, [self.spec], ())
            hooks: Any = self
            reloads = Reloads(registry, supervisor, EventLog(self.store), hooks, ())
            await supervisor.start(self.spec)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reloads.run)
                await trio.sleep(1)
                yield reloads
                nursery.cancel_scope.cancel()


async def test_ten_saves_are_one_restart_and_one_during_it_leads_to_another(
    autojump_clock: trio.testing.MockClock, monkeypatch: Any
) -> None:
    world = World(FakeLauncher(Behaviour(ready_after_s=5)))
    async with world.reloads(monkeypatch):
        for _ in range(10):
            world.save()
            await trio.sleep(0.1)
        await trio.sleep(3)
        world.save()  # while the new instance starts
        world.save()
        await trio.sleep(60)
        assert len(world.launches()) == 3
        assert await world.events() == ["service.reloaded"] * 2


async def test_what_does_not_start_leaves_what_ran_and_is_said_until_the_next_save(
    autojump_clock: trio.testing.MockClock, monkeypatch: Any
) -> None:
    launcher = FakeLauncher()
    world = World(launcher)
    async with world.reloads(monkeypatch) as reloads:
        launcher.refuse_next()
        world.save()
        await trio.sleep(10)
        assert launcher.children[0].ended_at is None
        assert "failed to start" in (why := reloads.error(world.spec.service_id) or "")
        assert world.said == [(why, True)]
        world.save()
        await trio.sleep(10)
        assert launcher.children[0].ended_at is not None
        assert reloads.error(world.spec.service_id) is None
        assert await world.events() == ["service.reload_failed", "service.reloaded"]


async def test_where_files_cannot_be_watched_it_says_so_and_tries_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: Any
) -> None:
    world = World(FakeLauncher())
    world.fails = OSError("no watches left")
    async with world.reloads(monkeypatch) as reloads:
        assert "no watches left" in (reloads.error(world.spec.service_id) or "")
        world.fails = None
        await trio.sleep(30)
        assert reloads.error(world.spec.service_id) is None
        world.save()
        await trio.sleep(10)
        assert len(world.launches()) == 2


def test_by_default_the_code_beside_the_agent_and_its_env_file_are_watched() -> None:
    agent = ServiceConfig("/p/a/agent.py:make", cwd="/p", env_file=".env")
    assert watched(agent, ["auto"]) == (Watched("/p/a", ".py"), Watched("/p/.env"))
    module = ServiceConfig("package.module:make", cwd="/p")
    assert watched(module, ["auto", "prompts", "/x/y"]) == (
        Watched("/p", ".py"), Watched("/p/prompts"), Watched("/x/y"),
    )  # fmt: skip
