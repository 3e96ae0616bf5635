"""The machines that Ray has, and a node daemon of ours on each of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from attrs import define, field
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...codec import from_answer, to_plain
from ...generation import Generation
from ...models.nodes import NAME_LABEL
from .. import ray_keeper
from ..engine import Machine
from ..ray_demands import NODE_ID
from ..ray_protocol import ALIVE_EVERY_S, Alive, Begin, Gone, Obeys, Report, Unfit, Up, WantsSecret
from .threads import in_thread

_LOOK_S = 0.5
_ENSURE_S = 120.0  #: a cold worker process, and a daemon that joins
_SECRET_S = 30.0  #: the manager writes each into its database
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


@define(eq=False)
class _Keeping:
    """The thread that keeps a daemon on one machine."""

    row: Mapping[str, Any]  #: as Ray has it
    gone: bool = False
    secret: str = ""
    wakes: threading.Condition = field(factory=threading.Condition)
    wanted: bool = True  #: its daemon is to be looked for


class Machines:
    def __init__(self, begin: Begin, say: Callable[[Report], None]) -> None:
        """Ray is connected."""
        self._begin, self._say = begin, say
        self.own: str = ray.get_runtime_context().get_node_id()
        self._known: dict[str, _Keeping] = {}
        # By value: the machines need not have this module, nor this version of it.
        ray.cloudpickle.register_pickle_by_value(ray_keeper)
        self._ensure = ray.remote(num_cpus=0, max_retries=0)(ray_keeper.ensure)
        rows = ray.nodes()
        own = next((row for row in rows if row["NodeID"] == self.own), None)
        host = begin.manager_host or ("localhost" if own is None else own["NodeManagerAddress"])
        self._manager = f"[{host}]:{begin.manager_port}" if ":" in host else f"{host}:{begin.manager_port}"
        self.alive_at_first = tuple(row["NodeID"] for row in rows if row["Alive"])
        self.dead_at_first = {row["NodeID"]: _death(row) for row in rows if not row["Alive"]}

    def watch(self) -> None:
        """Looks again and again, until the process ends. Raises what Ray raises."""
        said = 0.0
        while True:
            table = {row["NodeID"]: row for row in ray.nodes()}
            for engine_id, row in table.items():
                if row["Alive"] and engine_id not in self._known:
                    self._begin_keeping(engine_id, row)
            for engine_id in [it for it in self._known if it not in table or not table[it]["Alive"]]:
                self._end_keeping(engine_id, table.get(engine_id, {}))
            if time.monotonic() - said > ALIVE_EVERY_S - _LOOK_S:
                self._say(Alive())
                said = time.monotonic()
            time.sleep(_LOOK_S)

    def is_alive(self, engine_id: str) -> bool:
        return engine_id in self._known

    def invited(self, engine_id: str, secret: str) -> None:
        if (keeping := self._known.get(engine_id)) is not None:
            with keeping.wakes:
                keeping.secret = secret
                keeping.wakes.notify_all()

    def revive(self, engine_id: str) -> None:
        if (keeping := self._known.get(engine_id)) is not None:
            with keeping.wakes:
                keeping.wanted = True
                keeping.wakes.notify_all()

    def _begin_keeping(self, engine_id: str, row: Mapping[str, Any]) -> None:
        keeping = self._known[engine_id] = _Keeping(row)
        if engine_id == self.own:
            self._say(Up(_machine(row, "")))
            return
        in_thread(self._keep, engine_id, keeping)

    def _end_keeping(self, engine_id: str, row: Mapping[str, Any]) -> None:
        keeping = self._known.pop(engine_id)
        with keeping.wakes:
            keeping.gone = True
            keeping.wakes.notify_all()
            self._say(Gone(engine_id, _death(row)))

    def _keep(self, engine_id: str, keeping: _Keeping) -> None:
        pause = _FIRST_PAUSE_S
        while not keeping.gone:
            keeping.wanted = False
            try:
                fit = self._ensured(engine_id, keeping)
            except Exception as error:  # of Ray's, as when the machine goes just now
                fit = self._unfit(engine_id, keeping, f"Ray cannot run a task there: {_first_line(error)}")
            pause = _FIRST_PAUSE_S if fit else min(2 * pause, _LONGEST_PAUSE_S)
            with keeping.wakes:
                keeping.wakes.wait_for(lambda: keeping.gone or keeping.wanted, None if fit else pause)

    def _ensured(self, engine_id: str, keeping: _Keeping) -> bool:
        """Whether it has a daemon now."""
        row, labels = keeping.row, keeping.row.get("Labels") or {}
        told = {
            "cluster_id": self._begin.cluster_id,
            "address": row["NodeManagerAddress"],
            "manager": self._manager,
            "version": self._begin.version,
            "generation": to_plain(self._begin.generation),
            "name": labels.get(NAME_LABEL, ""),
        }
        found = self._run(engine_id, told)
        if found.get("wants_secret"):
            with keeping.wakes:
                keeping.secret = ""
                self._say(WantsSecret(engine_id))
                keeping.wakes.wait_for(lambda: keeping.gone or keeping.secret, _SECRET_S)
            if keeping.gone:
                return False
            if not keeping.secret:
                return self._unfit(engine_id, keeping, "the manager has made no secret for it to join with")
            found = self._run(engine_id, {**told, "secret": keeping.secret})
        if (reason := found.get("unfit")) is not None:
            return self._unfit(engine_id, keeping, reason)
        if "obeys" in found:
            self._say(Obeys(found["node_id"], from_answer(found["obeys"], Generation)))
            return True
        with keeping.wakes:
            if not keeping.gone:
                self._say(Up(_machine(row, found["node_id"]), tuple(found["remarks"])))
        return True

    def _run(self, engine_id: str, told: dict[str, Any]) -> dict[str, Any]:
        there = NodeAffinitySchedulingStrategy(engine_id, soft=False)
        asked = self._ensure.options(scheduling_strategy=there).remote(told)
        try:
            found: dict[str, Any] = ray.get(asked, timeout=_ENSURE_S)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(asked, force=True)
            raise
        return found

    def _unfit(self, engine_id: str, keeping: _Keeping, reason: str) -> bool:
        with keeping.wakes:
            if not keeping.gone:
                self._say(Unfit(engine_id, keeping.row["NodeManagerAddress"], reason))
        return False


def _death(row: Mapping[str, Any]) -> str:
    return " ".join((row.get("DeathReasonMessage") or "Ray says that it is dead").split())


def _machine(row: Mapping[str, Any], node_id: str) -> Machine:
    labels = {
        key: value for key, value in (row.get("Labels") or {}).items() if key not in (NODE_ID, NAME_LABEL)
    }
    resources = {
        name: float(amount)
        for name, amount in row["Resources"].items()
        # What Ray keeps for itself: `node:127.0.0.1` and its object store.
        if not name.startswith("node:") and name != "object_store_memory"
    }
    return Machine(row["NodeID"], node_id, row["NodeManagerAddress"], labels, resources)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
