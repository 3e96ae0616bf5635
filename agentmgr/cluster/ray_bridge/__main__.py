"""The process itself: it speaks `ray_protocol` on stdin and stdout until stdin ends."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO

from ...errors import InvalidRequest
from ..ray_protocol import (
    AllAsked,
    Ask,
    Begin,
    Connected,
    Drop,
    Hold,
    Invited,
    Order,
    Report,
    Revive,
    decode_order,
    encode,
)
from ..ray_protocol import CannotConnect as CannotConnectNow
from .connection import CannotConnect, connect
from .threads import in_thread

if TYPE_CHECKING:
    from .claims import ClaimKeeper
    from .machines import Machines


def main() -> int:
    # What Ray and its libraries print must not get among the messages.
    say = Reports(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    bridge = Bridge(say)
    try:
        for line in iter(sys.stdin.buffer.readline, b""):
            bridge.do(decode_order(line))
    except InvalidRequest as error:
        sys.stderr.write(f"{error}\n")
    # At once: a call of Ray's may hang for a minute, and the interpreter's own end would wait for it.
    os._exit(0)


class Reports:
    """What is said to the manager, by any thread, one line after the other."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def __call__(self, report: Report) -> None:
        line = encode(report)
        with self._lock:
            try:
                self._stream.write(line)
                self._stream.flush()
            except BrokenPipeError:  # the manager has gone
                os._exit(0)


class Bridge:
    def __init__(self, say: Reports) -> None:
        self._say = say
        self._machines: Machines | None = None
        self._claims: ClaimKeeper | None = None

    def do(self, order: Order) -> None:
        if isinstance(order, Begin):
            in_thread(self._run, order)
            return
        # Nothing else is said before `Connected`.
        assert self._machines is not None
        assert self._claims is not None
        match order:
            case Ask():
                self._claims.ask(order)
            case Drop(claim_id):
                self._claims.drop(claim_id)
            case AllAsked():
                self._claims.all_asked()
            case Hold(engine_ids):
                self._claims.hold(frozenset(engine_ids))
            case Invited(engine_id, secret):
                self._machines.invited(engine_id, secret)
            case Revive(engine_id):
                self._machines.revive(engine_id)

    def _run(self, begin: Begin) -> None:
        try:
            connect(begin.ray_address, f"agentmgr-{begin.cluster_id}")
        except CannotConnect as problem:
            self._say(CannotConnectNow(str(problem)))
            os._exit(1)
        import ray

        from .claims import ClaimKeeper
        from .machines import Machines

        machines = self._machines = Machines(begin, self._say)
        claims = self._claims = ClaimKeeper(begin.cluster_id, self._say, machines.is_alive)
        found = claims.found()
        self._say(
            Connected(machines.own, ray.__version__, machines.alive_at_first, machines.dead_at_first, found)
        )
        claims.start()
        machines.watch()


if __name__ == "__main__":
    sys.exit(main())
