"""How an instance ends its sessions before it is stopped: its host is asked, the gateway waits."""

from __future__ import annotations

import math

import trio

from ..models import ServiceConfig
from ..protocol import COME_BACK, GOING_AWAY
from .launcher import Child
from .recorder import RetryingRecorder

_FAREWELL_S = 15.0  #: beyond the drain timeout, for closing the last sessions
_PATIENCE_S = 86_400.0  #: of a drain without a deadline: what still runs then is not worth a process


class InstanceDrain:
    """The drain of one instance. It may be cut short before it begins."""

    def __init__(self, instance_id: str, config: ServiceConfig, recorder: RetryingRecorder) -> None:
        self._instance_id, self._config, self._recorder = instance_id, config, recorder
        self._scope = trio.CancelScope()
        self._answered = trio.Event()  # its host has answered, or there is no time left to
        self._host_knows_idle = False
        self._patient = False
        self._began = math.inf

    async def run(self, child: Child, *, for_good: bool) -> None:
        """Returns when it has no sessions left, or when the drain timeout is over, or when it is cut short.

        `for_good`: no other instance takes its place, and the close code says so.
        """
        timeout_s = _PATIENCE_S if self._patient else self._config.drain_timeout
        self._began = trio.current_time()
        self._scope.deadline = self._began + timeout_s + _FAREWELL_S
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_host, child, timeout_s, GOING_AWAY if for_good else COME_BACK)
                await self._recorder.drain(self._instance_id, timeout_s, for_good=for_good)

    async def _ask_host(self, child: Child, timeout_s: float, code: int) -> None:
        def answered(knows_idle: bool) -> None:
            self._host_knows_idle = knows_idle
            self._answered.set()
            if not knows_idle:
                self._limit(self._began)

        with trio.move_on_after(timeout_s):
            await child.drain(code, answered)
        self._answered.set()

    async def promise_another(self, child: Child) -> None:
        """Has it close with the code of a restart, whatever a killed manager asked it to close with."""
        await child.change_close_code(COME_BACK)

    def cut_short(self) -> None:
        self._scope.cancel()

    def be_patient(self) -> None:
        """Turns take as long as they take: it has no deadline, if its host knows which sessions are idle."""
        self._patient = True

    def be_quick(self) -> None:
        """From now on there is a deadline again: the drain timeout."""
        if self._patient:
            self._patient = False
            self._limit(trio.current_time())

    def _limit(self, since: float) -> None:
        latest = since + self._config.drain_timeout + _FAREWELL_S
        self._scope.deadline = min(self._scope.deadline, latest)

    async def terms(self) -> tuple[float | None, float]:
        """The seconds of silence after which the gateway may end a session (None: the host knows when one is
        idle, and ends it itself), and those for all sessions. Waits until the host has answered.
        """
        await self._answered.wait()
        if self._host_knows_idle:
            return None, _PATIENCE_S if self._patient else self._config.drain_timeout
        return self._config.drain_idle, self._config.drain_timeout
