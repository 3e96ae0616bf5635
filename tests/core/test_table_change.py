"""A router that follows changes routes as one that is made of the whole table."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.request import ClientRequest
from agentmgr.core.routing import Backend, BackendState, Pool, Router, RoutingTable
from agentmgr.core.table_change import TableChange
from agentmgr.errors import ServiceNotFound
from agentmgr.models import RoutingRule
from agentmgr.worker import protocol

NAMES = ("en", "job", "web", "zh")
FACTS = RoutingTable(
    rules=(
        RoutingRule("named", target_services=("zh", "svc_en"), priority=1, enabled=False),
        RoutingRule("tagged", target_tags=frozenset({"a"}), priority=2, enabled=False),
        RoutingRule("anyone", priority=3, enabled=False),
    ),
    service_names=frozenset(NAMES) - {"zh"},
    http_services=frozenset({"web"}),
    portless_services=frozenset({"job"}),
)


@st.composite
def tables(draw: st.DrawFn, most: int = 6) -> RoutingTable:
    """Backends by service, and by id within it; one may have been of another service."""
    made = [
        Backend(
            instance_id,
            f"svc_{name}",
            name,
            "127.0.0.1",
            draw(st.integers(1, 2)),
            draw(st.sampled_from([frozenset[str](), frozenset({"a"})])),
            state=draw(st.sampled_from(BackendState)),
            max_message_bytes=draw(st.integers(0, 3)),
        )
        for instance_id in sorted(draw(st.permutations("abcdefgh"))[:most])
        if (name := draw(st.sampled_from((None, *NAMES)))) is not None
    ]
    return evolve(FACTS, backends=tuple(sorted(made, key=lambda backend: backend.service_name)))


def pools(router: Router) -> list[Pool | None]:
    """What all kinds of requests get: by path, by hint, by each of the rules in turn, by none."""
    found: list[Pool | None] = []
    for path in ("/", *(f"/services/{name}" for name in NAMES), "/?tag=a"):
        pool = None
        with suppress(ServiceNotFound):
            pool = router.pool(ClientRequest(path))
        found.append(pool)
    return found


def shown(router: Router) -> list[tuple[object, ...] | None]:
    return [
        None if pool is None else (pool.backends, pool.strategy, pool.rule, pool.reason, pool.coming)
        for pool in pools(router)
    ]


def most_bytes(table: RoutingTable) -> int | None:
    limits = [backend.max_message_bytes for backend in table.backends]
    return 0 if 0 in limits else max(limits, default=None)


@given(st.lists(tables(), min_size=2, max_size=4), st.sampled_from([None, *FACTS.rules]))
def test_a_router_that_follows_changes_routes_as_one_made_of_the_whole_table(
    states: list[RoutingTable], rule: RoutingRule | None
) -> None:
    if rule is not None:
        rules = tuple(evolve(each, enabled=each == rule) for each in FACTS.rules)
        states = [evolve(table, rules=rules) for table in states]
    router = Router(states[0])
    for old, new in pairwise(states):
        pools(router)  # which it remembers, and has to forget where they have changed
        assert router.most_message_bytes == most_bytes(old)  # as this
        change = TableChange.between(old, new)
        assert change is not None
        said = protocol.decode_order(protocol.encode(protocol.Changes(1, 2, change)))
        assert isinstance(said, protocol.Changes)
        router.change(said.change)
        whole = Router(new)
        assert router.table == new
        assert router.by_id == whole.by_id
        assert router.most_message_bytes == most_bytes(new)
        assert shown(router) == shown(whole)
        assert {router.knows(name) for name in NAMES} == {whole.knows(name) for name in NAMES}
        for backend in old.backends:
            assert list(router.peers(backend)) == list(whole.peers(backend))


@given(tables(), tables())
def test_only_what_differs_is_in_a_change(old: RoutingTable, new: RoutingTable) -> None:
    change = TableChange.between(old, new)
    assert change is not None
    assert set(change.backends) == set(new.backends) - set(old.backends)
    assert {*change.gone} >= {b.instance_id for b in old.backends} - {b.instance_id for b in new.backends}
    assert TableChange.between(new, new) == TableChange()


def test_there_is_no_change_where_more_than_backends_differs_or_they_are_in_another_order() -> None:
    a, b = Backend.at("h", 1, "a"), Backend.at("h", 2, "b")
    table = RoutingTable((a, b))
    assert TableChange.between(table, evolve(table, service_names=frozenset({"a"}))) is None
    assert TableChange.between(table, RoutingTable((b, a))) is None
    assert TableChange.between(RoutingTable((a, b, evolve(a, instance_id="c"))), table) is None
    two = (a, evolve(a, instance_id="c"))
    assert TableChange.between(RoutingTable(two), RoutingTable(two[::-1])) is None
