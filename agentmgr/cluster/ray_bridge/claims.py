"""Claims and holds: detached placement groups of one bundle, which outlive this process, by their names.

Ray moves the group of a machine that has died to another one. A claim is for an instance that is where it is,
so such a group is removed, and the manager hears that it has gone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import ray
from attrs import define
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..engine import Claim, claim_prefix
from ..ray_demands import NODE_ID
from ..ray_protocol import Ask, Claims, Dropped, Given, Held, Pending, Refused, Report
from .threads import in_thread

_WORKERS = 8
_PREFERRED_S = 1  #: for the machine that is preferred
_LOOK_S, _LOOK_AT_PENDING_S = 3.0, 0.25
_GPU_IDS_S = 60.0  #: a cold worker process on a busy machine
_AGAIN_S = 1.0
_NAME_FREE_S = 5.0  #: until the name of a group that was removed is free again
_HOLD_BYTES = 2**20
_HOLD = "hold/"


@define(eq=False)
class _Entry:
    """One claim that is asked for, or is there."""

    ask: Ask | None  #: None: of an earlier bridge, and not asked for by now
    group: PlacementGroup | None = None
    given: Claim | None = None
    feasible: bool | None = None  #: as was said last, while it is pending


class ClaimKeeper:
    def __init__(
        self, cluster_id: str, say: Callable[[Report], None], is_alive: Callable[[str], bool]
    ) -> None:
        """Ray is connected. `is_alive`: whether Ray has a machine."""
        self._prefix, self._say, self._is_alive = claim_prefix(cluster_id), say, is_alive
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._held: frozenset[str] | None = None  #: None: not said yet
        self._held_now: frozenset[str] | None = None  #: as was said last
        # What is asked about one claim is done in the order in which it was asked.
        self._queues: list[SimpleQueue[Callable[[], None]]] = [SimpleQueue() for _ in range(_WORKERS)]

    def found(self) -> tuple[Claim, ...]:
        """Those that are there already."""
        rows = {name: row for name, row in self._rows().items() if row["state"] == "CREATED"}
        groups = {name: get_placement_group(name) for name in rows}
        asked = {
            name: _ask_gpu_ids(group, gpus)
            for name, group in groups.items()
            if (gpus := rows[name]["bundles"][0].get("GPU", 0))
        }
        for name, row in rows.items():
            try:
                gpu_ids = tuple(ray.get(asked[name], timeout=_GPU_IDS_S)) if name in asked else ()
            except Exception as error:  # of Ray's, as when the machine goes just now
                sys.stderr.write(f"cannot learn the GPUs of {name}: {error}\n")
                self._remove(name)
                continue
            given = Claim(name, row["bundles_to_node_id"][0], gpu_ids)
            self._entries[name] = _Entry(None, groups[name], given)
        return self._given()

    def start(self) -> None:
        for queue in self._queues:
            in_thread(_work, queue)
        in_thread(self._watch)

    # What the manager says

    def ask(self, ask: Ask) -> None:
        with self._lock:
            entry = self._entries.setdefault(ask.claim_id, _Entry(ask))
            entry.ask = ask
        self._queue_of(ask.claim_id).put(partial(self._do_ask, ask.claim_id, entry))

    def drop(self, claim_id: str) -> None:
        with self._lock:
            entry = self._entries.pop(claim_id, None)
        self._queue_of(claim_id).put(partial(self._do_drop, claim_id, entry))

    def all_asked(self) -> None:
        """What is pending and was not asked for by now is removed."""
        with self._lock:
            asked = set(self._entries)

        def clear() -> None:
            for claim_id, row in self._rows().items():
                if claim_id not in asked and row["state"] != "CREATED":
                    self._queue_of(claim_id).put(partial(self._remove_unless_asked, claim_id))

        self._queues[0].put(clear)

    def hold(self, engine_ids: frozenset[str]) -> None:
        with self._news:
            self._held = engine_ids
            self._news.notify_all()

    # What is done about it, by the thread of that claim

    def _do_ask(self, claim_id: str, entry: _Entry) -> None:
        ask = entry.ask
        assert ask is not None
        if self._entries.get(claim_id) is not entry:  # it was dropped meanwhile
            return
        try:
            self._claim(claim_id, entry, ask)
        except (ValueError, TypeError) as error:  # by these Ray says that it cannot express it
            with self._lock:
                if self._entries.get(claim_id) is entry:
                    del self._entries[claim_id]
                    self._say(Refused(ask.number, claim_id, str(error)))

    def _claim(self, claim_id: str, entry: _Entry, ask: Ask) -> None:
        if entry.given is not None:
            self._give(claim_id, entry)
            return
        row = self._row(claim_id)
        if row is None or row["state"] != "CREATED":
            if row is not None:
                self._remove(claim_id)
            if ask.prefer:
                entry.group = self._create(ask, {**ask.selector, NODE_ID: ask.prefer})
                if entry.group.wait(_PREFERRED_S):
                    self._give(claim_id, entry)
                    return
                self._remove(claim_id)
            entry.group = self._create(ask, ask.selector)
            if not entry.group.wait(_PREFERRED_S):
                self._look_at(claim_id, entry)
                with self._news:
                    self._news.notify_all()
                return
        entry.group = get_placement_group(claim_id)
        self._give(claim_id, entry)

    def _give(self, claim_id: str, entry: _Entry) -> None:
        """Its group is ready."""
        if entry.given is None:
            assert entry.group is not None
            assert entry.ask is not None
            row = placement_group_table(entry.group)
            if row.get("state") != "CREATED":  # its machine has died just now
                self._again(claim_id, entry)
                return
            gpu_ids: list[str] = []
            if gpus := entry.ask.bundle.get("GPU", 0):
                try:
                    gpu_ids = ray.get(_ask_gpu_ids(entry.group, gpus), timeout=_GPU_IDS_S)
                except Exception as error:  # of Ray's, as when the machine goes just now
                    sys.stderr.write(f"cannot learn the GPUs of {claim_id}: {error}\n")
                    time.sleep(_AGAIN_S)
                    self._again(claim_id, entry)
                    return
            entry.given = Claim(claim_id, row["bundles_to_node_id"][0], tuple(gpu_ids))
        with self._lock:
            if self._entries.get(claim_id) is entry and entry.ask is not None:
                self._say(Given(entry.ask.number, entry.given))

    def _again(self, claim_id: str, entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(claim_id) is entry:
                self._queue_of(claim_id).put(partial(self._do_ask, claim_id, entry))

    def _do_drop(self, claim_id: str, entry: _Entry | None) -> None:
        self._remove(claim_id)
        self._say(Dropped(claim_id))

    def _create(self, ask: Ask, selector: Mapping[str, str]) -> PlacementGroup:
        give_up_at = time.monotonic() + _NAME_FREE_S
        while True:
            try:
                return placement_group(
                    [dict(ask.bundle)],
                    name=ask.claim_id,
                    lifetime="detached",
                    bundle_label_selector=[dict(selector)] if selector else None,
                )
            except ray.exceptions.RaySystemError as error:
                if "already exists" not in str(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.05)

    def _remove(self, name: str) -> None:
        with suppress(ValueError):  # there is none
            remove_placement_group(get_placement_group(name))

    def _remove_unless_asked(self, claim_id: str) -> None:
        with self._lock:
            if claim_id in self._entries:
                return
        self._remove(claim_id)

    def _queue_of(self, claim_id: str) -> SimpleQueue[Callable[[], None]]:
        return self._queues[hash(claim_id) % _WORKERS]

    # What becomes of them

    def _watch(self) -> None:
        while True:
            with self._news:
                pending = any(it.given is None for it in self._entries.values())
                if self._held == self._held_now:
                    self._news.wait(_LOOK_AT_PENDING_S if pending else _LOOK_S)
                entries, held = dict(self._entries), self._held
            table = _table(self._prefix) if entries or held is not None else {}
            self._look(entries, table)
            if held is not None:
                self._keep_holds(held, table)

    def _look(self, entries: Mapping[str, _Entry], rows: Mapping[str, Mapping[str, Any]]) -> None:
        lost = False
        for claim_id, entry in entries.items():
            if (given := entry.given) is not None:
                if not self._stands(given, rows.get(claim_id)):
                    lost = self._lose(claim_id, entry) or lost
            elif entry.feasible is not None:
                self._judge(claim_id, entry, rows.get(claim_id))
        if lost:
            with self._lock:
                self._say(Claims(self._given()))

    def _stands(self, given: Claim, row: Mapping[str, Any] | None) -> bool:
        return (
            row is not None and row["state"] == "CREATED" and row["bundles_to_node_id"][0] == given.engine_id
        )

    def _lose(self, claim_id: str, entry: _Entry) -> bool:
        with self._lock:
            if self._entries.get(claim_id) is not entry:  # it was dropped meanwhile
                return False
            del self._entries[claim_id]
            self._queue_of(claim_id).put(partial(self._remove, claim_id))
        return True

    def _look_at(self, claim_id: str, entry: _Entry) -> None:
        self._judge(claim_id, entry, self._row(claim_id))

    def _judge(self, claim_id: str, entry: _Entry, row: Mapping[str, Any] | None) -> None:
        """Of one that is pending, or was."""
        if row is None or row["state"] == "CREATED":
            with self._lock:
                entry.feasible = None  # it is looked at no more until it is pending again
            self._again(claim_id, entry)
            return
        feasible = row["stats"].get("scheduling_state") != "INFEASIBLE"
        with self._lock:
            wanted = self._entries.get(claim_id) is entry
            if wanted and entry.ask is not None and feasible is not entry.feasible:
                entry.feasible = feasible
                self._say(Pending(entry.ask.number, claim_id, feasible))

    def _keep_holds(self, held: frozenset[str], table: Mapping[str, Mapping[str, Any]]) -> None:
        start = f"{self._prefix}{_HOLD}"
        there = {name.removeprefix(start) for name in table if name.startswith(start)}
        wanted = {engine_id for engine_id in held if self._is_alive(engine_id)}
        for engine_id in there - wanted:
            self._remove(start + engine_id)
        for engine_id in wanted - there:
            self._create(Ask(start + engine_id, 0, {"memory": _HOLD_BYTES}, {}), {NODE_ID: engine_id})
        if held != self._held_now:
            self._held_now = held
            self._say(Held(tuple(sorted(held))))

    # What Ray has

    def _given(self) -> tuple[Claim, ...]:
        return tuple(entry.given for entry in self._entries.values() if entry.given is not None)

    def _rows(self) -> dict[str, dict[str, Any]]:
        """The groups of all claims, by name."""
        hold = f"{self._prefix}{_HOLD}"
        return {name: row for name, row in _table(self._prefix).items() if not name.startswith(hold)}

    def _row(self, name: str) -> dict[str, Any] | None:
        try:
            row: dict[str, Any] = placement_group_table(get_placement_group(name))
        except ValueError:  # there is none
            return None
        return row or None


def _table(prefix: str) -> dict[str, dict[str, Any]]:
    """All groups whose names begin so, by name."""
    return {
        row["name"]: row
        for row in placement_group_table().values()
        if row["name"].startswith(prefix) and row["state"] != "REMOVED"
    }


def _work(queue: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        queue.get()()


def _ask_gpu_ids(group: PlacementGroup, gpus: float) -> Any:
    def gpu_ids() -> list[str]:  # within this function: so it goes to the machine by value
        import ray

        return [str(it) for it in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]

    there = PlacementGroupSchedulingStrategy(group, 0)
    options = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=there)
    return options(gpu_ids).remote()
