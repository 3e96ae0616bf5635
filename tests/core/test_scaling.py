"""How many instances run: a table of looks, and arbitrary loads over time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.scaling import (
    DOWN_AFTER_S,
    Load,
    Needs,
    Share,
    Standing,
    Step,
    Turns,
    decide,
    share,
    surplus,
    wanted,
)
from agentmgr.models import Instance, ServiceConfig, ServiceStatus, Sessions
from agentmgr.models.instance_range import InstanceRange

FOR_SEVEN = Share(7, "connections")
BOUNDS = InstanceRange(1, 4)


@pytest.mark.parametrize(
    ("load", "running", "lately", "expected"),
    [
        (Load(7), 1, 1, None),
        (Load(8), 1, 1, Step(2, "8 connections, and one instance takes 7")),
        (Load(10, waiting=20), 1, 1, Step(4, "10 connections, 20 clients wait, and one instance takes 7")),
        (Load(1000), 1, 1, Step(4, "1000 connections, and one instance takes 7")),
        (Load(1000), 4, 4, None),
        (Load(0), 0, 1, Step(1, "at least 1 must run")),
        (Load(8), 3, 3, None),
        (Load(1), 3, 2, Step(2, "1 connection; for 120 s no more were needed")),
        (Load(0), 3, 1, Step(1, "0 connections; for 120 s no more were needed")),
        (Load(22), 3, 1, Step(4, "22 connections, and one instance takes 7")),
    ],
)
def test_one_look(load: Load, running: int, lately: int, expected: Step | None) -> None:
    needs = Needs.since(0, 4).with_need(10, lately).with_need(DOWN_AFTER_S + 9, lately)
    assert decide(BOUNDS, FOR_SEVEN, load, running, needs, DOWN_AFTER_S + 10)[1] == expected


def test_what_is_looked_at_for_the_first_time_runs_on_for_two_minutes() -> None:
    needs, step = decide(BOUNDS, FOR_SEVEN, Load(0), 4, Needs.since(50, 4), 50)
    assert step is None
    needs, step = decide(BOUNDS, FOR_SEVEN, Load(0), 4, needs, 49 + DOWN_AFTER_S)
    assert step is None
    needs, step = decide(BOUNDS, FOR_SEVEN, Load(0), 4, needs, 50 + DOWN_AFTER_S)
    assert step is not None
    assert step.count == 1


RANGES = st.tuples(st.integers(0, 6), st.integers(1, 8)).map(lambda ends: InstanceRange(*sorted(ends)))
RANGES = RANGES.filter(lambda bounds: bounds.most > 0)
SHARES = st.integers(1, 9).map(lambda most: Share(most, "connections"))
LOOKS = st.lists(st.tuples(st.floats(0.05, 200), st.builds(Load, st.integers(0, 90), st.integers(0, 30))))


def followed(
    bounds: InstanceRange, share: Share, looks: list[tuple[float, Load]], running: int
) -> list[tuple[float, int]]:
    """The times of all changes, and the numbers that were set, the first one included."""
    now, needs = 0.0, Needs.since(0.0, running)
    changes = [(now, running)]
    for pause, load in looks:
        now += pause
        needs, step = decide(bounds, share, load, running, needs, now)
        if step is not None:
            running = step.count
            changes.append((now, running))
    return changes


@given(RANGES, SHARES, LOOKS, st.data())
def test_any_load_keeps_the_number_in_its_range_and_lets_it_rest_after_each_rise(
    bounds: InstanceRange, share: Share, looks: list[tuple[float, Load]], data: st.DataObject
) -> None:
    changes = followed(bounds, share, looks, data.draw(st.integers(bounds.least_awake, bounds.most)))
    assert all(bounds.least_awake <= count <= bounds.most for _, count in changes)
    assert all(before != after for (_, before), (_, after) in pairwise(changes))
    rises = [(at, count) for (_, before), (at, count) in pairwise(changes) if count > before]
    for risen_at, reached in rises:
        assert all(count >= reached for at, count in changes if risen_at < at < risen_at + DOWN_AFTER_S)


@given(RANGES, SHARES, st.builds(Load, st.integers(0, 90), st.integers(0, 30)), st.data())
def test_a_constant_load_is_met_at_once_and_the_number_rests(
    bounds: InstanceRange, share: Share, load: Load, data: st.DataObject
) -> None:
    running = data.draw(st.integers(bounds.least_awake, bounds.most))
    changes = followed(bounds, share, [(1.0, load)] * 400, running)
    needed = load.needs(share, bounds)
    assert [count for _, count in changes] == ([running, needed] if needed != running else [running])
    if len(changes) > 1:
        assert changes[1][0] == (1.0 if needed > running else 1.0 + DOWN_AFTER_S)


@given(RANGES, SHARES, LOOKS)
def test_no_instance_has_more_than_its_share_unless_all_run(
    bounds: InstanceRange, share: Share, looks: list[tuple[float, Load]]
) -> None:
    now, needs, running = 0.0, Needs.since(0.0, bounds.least_awake), bounds.least_awake
    for pause, load in looks:
        now += pause
        needs, step = decide(bounds, share, load, running, needs, now)
        running = step.count if step else running
        assert running == bounds.most or load.under_way + load.waiting <= running * share.most


def test_what_one_instance_is_for() -> None:
    agent = ServiceConfig(agent_factory_path="a.py", instances="1..4")
    assert share(agent) == Share(4, "turns")
    assert share(evolve(agent, max_sessions=10)) == Share(7, "connections")
    assert share(evolve(agent, max_sessions=1)) == Share(1, "connections")
    assert share(evolve(agent, max_sessions=10, sessions_per_instance=3)) == Share(3, "connections")


def instance(slot: int, status: ServiceStatus = ServiceStatus.RUNNING) -> Instance:
    return Instance(f"ins_{slot}", "svc", slot, status)


AGENT = ServiceConfig(agent_factory_path="a.py", instances="1..8")


def test_the_emptiest_ends_first() -> None:
    standings = [
        Standing(instance(0), connections=3, turns=Turns(0)),
        Standing(instance(1), connections=1, turns=Turns(1)),
        Standing(instance(2), connections=3, turns=Turns(0)),
        Standing(instance(3, ServiceStatus.ERROR), connections=0),
        Standing(instance(4, ServiceStatus.STARTING), connections=0),
        Standing(instance(5), connections=2, turns=None),
    ]
    order = ["ins_4", "ins_3", "ins_5", "ins_2", "ins_0", "ins_1"]
    assert [surplus(AGENT, standings, count) for count in range(7)] == [order[:count] for count in range(7)]


def test_what_only_its_memory_has_keeps_an_instance() -> None:
    standings = [
        Standing(instance(0), connections=0, turns=Turns(0), conversations=1),
        Standing(instance(1), connections=1, turns=Turns(0), conversations=0),
        Standing(instance(2), connections=0, turns=Turns(0), conversations=None),
        Standing(instance(3), connections=0, turns=Turns(0), conversations=0),
        Standing(instance(4, ServiceStatus.BACKOFF), connections=0),
    ]
    assert surplus(evolve(AGENT, sessions=Sessions.MEMORY), standings, 4) == ["ins_4", "ins_3"]
    assert len(surplus(AGENT, standings, 4)) == 4


def test_how_many_are_to_run_now() -> None:
    running, draining = instance(1), instance(2, ServiceStatus.DRAINING)
    given_up = instance(3, ServiceStatus.ERROR)
    assert wanted(evolve(AGENT, instances=3), []) == 3
    assert wanted(evolve(AGENT, instances="2..8"), []) == 2
    assert wanted(evolve(AGENT, instances="0..8"), []) == 0
    assert wanted(AGENT, [running, running, draining, given_up]) == 2
