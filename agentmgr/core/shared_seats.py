"""Seats that several processes share: `max_sessions` holds over all of them together.

The rules:

* The manager counts, in one `Ledger`. A worker keeps `SharedSeats`, and reports each seat that it takes or
  gives back.
* At an instance without a limit a worker takes a seat at once. At a limited one it asks first, naming all
  instances that would do, the preferred one first. The ledger grants the first of them that has a seat; where
  none has, the request waits, and a seat that comes free goes to the oldest request that names it.
* While no manager answers, a worker may use only the seats that it holds: what its own connections give back
  stays with it for its next clients. So the bound cannot be passed, whatever happens meanwhile.
* When a worker comes back, it declares the seats that its connections occupy, and gives up the others. Until
  all workers that live have declared, the ledger grants nothing (`Ledger.pause`).
* A worker on another machine holds its seats by a lease (`leases`). When that is over it ends its connections
  at the limited instances of other machines, and uses no seat there until it has a manager again.

A worker's figures of the others' seats are slightly out of date. That may route a client to its second
choice, but never beyond a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set

from attrs import frozen

from .admission import Seats, remove_one
from .routing import Backend


@frozen
class Took:
    instance_id: str


@frozen
class Gave:
    instance_id: str


@frozen
class Ask:
    """Asks for one client's seat at one of these; replaces an earlier question with the same ticket."""

    ticket: int
    instance_ids: tuple[str, ...]


@frozen
class Withdraw:
    ticket: int


@frozen
class Grant:
    """The seat is the worker's, which gives it back when its client has left meanwhile."""

    ticket: int
    instance_id: str


SeatReport = Took | Gave | Ask | Withdraw


class SharedSeats(Seats):
    """One worker's seats. `tell` sends its reports to the manager; without one they are dropped.

    `taken` includes the others' seats, and `full` names the instances without a free seat, both as far as
    this worker knows.
    """

    def __init__(self, tell: Callable[[SeatReport], None]) -> None:
        super().__init__()
        self._tell = tell
        self._mine: dict[str, int] = {}  # in use
        self._spare: dict[str, int] = {}  # held, and not in use
        self._others: dict[str, int] = {}
        self._attached = False
        self._kept: Set[str] | None = None  # once the lease is over: the instances whose seats stay

    def set_limit(self, instance_id: str, max_sessions: int) -> None:
        if not max_sessions:
            self._spare.pop(instance_id, None)
        super().set_limit(instance_id, max_sessions)

    def take(self, backend: Backend) -> bool:
        """Takes a seat, or says that it has to be asked for."""
        name = backend.instance_id
        if spare := self._spare.get(name):
            self._spare[name] = spare - 1
        elif name in self._limits:
            return False
        else:
            self._say(Took(name))
        self._mine[name] = self._mine.get(name, 0) + 1
        self.add(name)
        return True

    def give_back(self, instance_id: str) -> bool:
        """Whether the seat is free for another client of this worker. Raises `ValueError` for none taken."""
        remove_one(self._mine, instance_id)
        limited = instance_id in self._limits
        stays = not self._attached and (self._kept is None or instance_id in self._kept)
        if limited and stays:
            self._spare[instance_id] = self._spare.get(instance_id, 0) + 1
        self._say(Gave(instance_id))
        super().give_back(instance_id)
        return not limited or stays

    def ask(self, ticket: int, instance_ids: Sequence[str]) -> None:
        self._say(Ask(ticket, tuple(instance_ids)))

    def withdraw(self, ticket: int) -> None:
        self._say(Withdraw(ticket))

    def granted(self, instance_id: str) -> None:
        """A seat came; `settle` gives it up unless it is taken before."""
        self._spare[instance_id] = self._spare.get(instance_id, 0) + 1
        self._judge(instance_id)

    def settle(self, instance_id: str) -> None:
        for _ in range(self._spare.pop(instance_id, 0)):
            self._say(Gave(instance_id))
        self._judge(instance_id)

    def attach(self) -> Mapping[str, int]:
        """A manager is connected; returns the seats in use, to be declared to it first."""
        self._attached, self._kept = True, None
        self._spare.clear()
        self._judge_all()
        return dict(self._mine)

    def detach(self) -> None:
        self._attached = False
        self._judge_all()

    def in_use(self, instance_id: str) -> int:
        """How many of this worker's own connections there are at the instance, or about to open."""
        return self._mine.get(instance_id, 0)

    def lapse(self, kept: Set[str]) -> list[str]:
        """The lease is over, and no manager is connected: seats at other instances than these are given up.

        Returns those instances where some are in use: the connections there have to end.
        """
        self._kept = kept
        for name in self._spare.keys() - kept:
            del self._spare[name]
        self._judge_all()
        return [name for name in self._mine if name not in kept]

    def know(self, others: Mapping[str, int], *, whole: bool = False) -> None:
        """Sets the number of seats that the others have, by instance id; with `whole` they have no more."""
        if whole:
            others = {**dict.fromkeys(self._others, 0), **others}
        for name, count in others.items():
            if count:
                self._others[name] = count
            else:
                self._others.pop(name, None)
            if total := self._mine.get(name, 0) + count:
                self._taken[name] = total
            else:
                self._taken.pop(name, None)
            self._judge(name)

    def _say(self, report: SeatReport) -> None:
        if self._attached:
            self._tell(report)

    def _judge_all(self) -> None:
        for name in self._limits:
            self._judge(name)

    def _judge(self, instance_id: str) -> None:
        super()._judge(instance_id)
        if not self._attached and instance_id in self._limits:
            self._full.add(instance_id)
        if self._spare.get(instance_id):
            self._full.discard(instance_id)


class Ledger:
    """Who holds which seats, and who asks for one. Grants are returned, for the caller to pass on.

    `seats` has the sum of all, the manager's own connections included, and the limits.
    """

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._held: dict[str, dict[str, int]] = {}  # by worker, by instance
        self._asks: dict[tuple[str, int], tuple[str, ...]] = {}
        self._queues: dict[str, dict[tuple[str, int], None]] = {}  # by instance, the oldest first
        self._unsaid: dict[str, set[str]] = {}  # by worker: where the others' seats have changed

    def pause(self) -> None:
        self._seats.hold(True)

    def resume(self) -> list[tuple[str, Grant]]:
        self._seats.hold(False)
        return self.serve_all()

    def held(self, worker: str) -> Mapping[str, int]:
        return self._held.get(worker, {})

    def others(self, worker: str) -> dict[str, int]:
        """The seats that all but this worker have, by instance id; `changes` follows them from now on."""
        self._unsaid[worker] = set()
        mine = self.held(worker)
        return {name: n for name, all_ in self._seats.taken.items() if (n := all_ - mine.get(name, 0))}

    def unsaid(self, worker: str) -> int | None:
        """At how many instances they have changed since; None: `others` was not asked since `detach`."""
        return None if (names := self._unsaid.get(worker)) is None else len(names)

    def changes(self, worker: str) -> dict[str, int]:
        """The seats that all but this worker have at these instances."""
        mine, taken = self.held(worker), self._seats.taken
        names, self._unsaid[worker] = self._unsaid[worker], set()
        return {name: taken.get(name, 0) - mine.get(name, 0) for name in names}

    def changed(self, instance_id: str, by: str | None = None) -> None:
        """This worker, or the manager's own gateway, has taken a seat there or given one back."""
        for worker, names in self._unsaid.items():
            if worker != by:
                names.add(instance_id)

    def asking(self, instance_ids: Iterable[str]) -> int:
        """How many requests wait for a seat at one of these."""
        return len(set[tuple[str, int]]().union(*(self._queues.get(name, ()) for name in instance_ids)))

    def report(self, worker: str, report: SeatReport) -> list[tuple[str, Grant]]:
        match report:
            case Took(name):
                self._add(worker, name)
                return []
            case Gave(name):
                self._remove(worker, name)
                return self.serve(name)
            case Withdraw(ticket):
                self._withdraw((worker, ticket))
                return []
            case Ask(ticket, names):
                return self._ask((worker, ticket), names)

    def declare(self, worker: str, held: Mapping[str, int]) -> list[tuple[str, Grant]]:
        """Replaces what is known of the worker's seats. They may exceed the limits: connections stay."""
        freed = []
        for name in set(self.held(worker)) | set(held):
            change = held.get(name, 0) - self.held(worker).get(name, 0)
            for _ in range(change):
                self._add(worker, name)
            for _ in range(-change):
                self._remove(worker, name)
                freed.append(name)
        return [grant for name in freed for grant in self.serve(name)]

    def detach(self, worker: str) -> None:
        """The worker does not answer: it keeps its seats, and its requests are dropped."""
        self._unsaid.pop(worker, None)
        for key in [key for key in self._asks if key[0] == worker]:
            self._withdraw(key)

    def forget(self, worker: str) -> list[tuple[str, Grant]]:
        """The worker is dead: its seats are free."""
        self.detach(worker)
        return self.declare(worker, {})

    def serve(self, instance_id: str) -> list[tuple[str, Grant]]:
        """Gives the free seats of an instance to those who have asked for longest."""
        grants: list[tuple[str, Grant]] = []
        while instance_id not in self._seats.full and (queue := self._queues.get(instance_id)):
            worker, ticket = next(iter(queue))
            self._withdraw((worker, ticket))
            self._add(worker, instance_id)
            grants.append((worker, Grant(ticket, instance_id)))
        return grants

    def serve_all(self) -> list[tuple[str, Grant]]:
        """For when limits have changed."""
        return [grant for name in tuple(self._queues) for grant in self.serve(name)]

    def _ask(self, key: tuple[str, int], names: Sequence[str]) -> list[tuple[str, Grant]]:
        for gone in set(self._asks.get(key, ())) - set(names):
            self._leave(gone, key)
        self._asks[key] = tuple(names)
        for name in names:
            self._queues.setdefault(name, {}).setdefault(key)
        for name in names:
            # Whoever waits for a seat that is free is served already, so this one is the first.
            if granted := self.serve(name):
                return granted
        return []

    def _withdraw(self, key: tuple[str, int]) -> None:
        for name in self._asks.pop(key, ()):
            self._leave(name, key)

    def _leave(self, name: str, key: tuple[str, int]) -> None:
        queue = self._queues[name]
        del queue[key]
        if not queue:
            del self._queues[name]

    def _add(self, worker: str, name: str) -> None:
        held = self._held.setdefault(worker, {})
        held[name] = held.get(name, 0) + 1
        self._seats.add(name)
        self.changed(name, worker)

    def _remove(self, worker: str, name: str) -> None:
        held = self._held.get(worker, {})
        remove_one(held, name)
        if not held:
            del self._held[worker]
        self._seats.remove(name)
        self.changed(name, worker)
