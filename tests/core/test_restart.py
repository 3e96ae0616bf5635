"""The restart policy over arbitrary histories; the rules are those of its docstring."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.restart import (
    JITTER,
    MIN_REPEATED_DELAY_S,
    Again,
    Cause,
    Done,
    Ending,
    Exit,
    GiveUp,
    History,
    decide,
)
from agentmgr.models import RestartMode, ServiceConfig

seconds = st.floats(0, 1000, allow_nan=False)
rands = st.floats(0, 1, exclude_max=True)
exits = st.one_of(
    st.builds(Exit, code=st.integers(0, 255)), st.builds(Exit, signal=st.integers(1, 64)), st.just(Exit())
)
endings = st.builds(
    Ending,
    cause=st.sampled_from(Cause),
    reason=st.just("it fell"),
    exit=exits,
    ready_for_s=st.one_of(st.none(), seconds),
)
configs = st.builds(
    ServiceConfig,
    agent_factory_path=st.just("agent.py"),
    restart=st.sampled_from(RestartMode),
    auto_restart=st.booleans(),
    max_restart_count=st.integers(0, 6),
    restart_window=st.floats(1, 300),
    restart_delay=st.floats(0, 30),
    restart_delay_max=st.floats(0, 100),
    stable_after=st.floats(0, 100),
)
config = ServiceConfig(agent_factory_path="agent.py")
crash = Ending(Cause.EXITED, "it fell", Exit(code=1), ready_for_s=1)


def relive(config, story, rand=0.5):
    """The decisions over a story of (time until it ends, how it ends), and when each was made."""
    history, now = History(), 0.0
    for lasted, ending in story:
        now += lasted
        decision = decide(config, history, ending, now=now, rand=rand)
        yield now, ending, decision
        if not isinstance(decision, Again):
            return
        history = decision.history
        now += decision.delay_s


stories = st.lists(st.tuples(seconds, endings), max_size=40)


@given(configs, stories)
def test_no_window_holds_more_restarts_than_the_budget(config, story):
    restarts = [
        (at, ending)
        for at, ending, decision in relive(config, story)
        if isinstance(decision, Again) and not ending.blameless
    ]
    for i, (end, _) in enumerate(restarts):
        recent = []
        for at, ending in restarts[: i + 1]:
            if ending.ready_for_s is not None and ending.ready_for_s >= config.stable_after:
                recent = []
            if at > end - config.restart_window:
                recent.append(at)
        assert len(recent) <= max(config.max_restart_count, 0)


@given(configs, stories, rands)
def test_a_delay_is_within_its_bounds_and_only_the_first_may_be_short(config, story, rand):
    restarts = 0
    for _, ending, decision in relive(config, story, rand):
        if isinstance(decision, Again):
            forgiven = ending.ready_for_s is not None and ending.ready_for_s >= config.stable_after
            restarts = 1 if forgiven else restarts + 1
            most = max(config.restart_delay_max, MIN_REPEATED_DELAY_S) * (1 + JITTER)
            assert 0 <= decision.delay_s <= most
            again_soon = ending.blameless or len(decision.history.restarts) > 1
            if again_soon and min(config.restart_delay, config.restart_delay_max) == 0:
                least = min(MIN_REPEATED_DELAY_S, config.restart_delay_max or MIN_REPEATED_DELAY_S)
                assert ending.blameless or decision.delay_s >= least * (1 - JITTER)


@given(configs, stories)
def test_never_means_never(config, story):
    for _, ending, decision in relive(evolve(config, auto_restart=False), story):
        assert isinstance(decision, Done if ending.well else GiveUp)


@given(configs, endings)
def test_what_cannot_get_better_is_not_tried_again(config, ending):
    if ending.hopeless:
        assert decide(config, History(), ending, now=0, rand=0) == GiveUp(ending.reason)


@given(configs, exits)
def test_exit_code_0_is_well_only_after_it_was_ready(config, exit):
    served = Ending(Cause.EXITED, "done", exit, ready_for_s=1)
    never_ready = evolve(served, ready_for_s=None)
    assert served.well == (exit == Exit(code=0))
    assert not never_ready.well


@given(st.sampled_from([RestartMode.ON_FAILURE, RestartMode.ALWAYS]))
def test_what_another_program_ended_in_good_order_is_started_again(mode):
    ended = Ending(Cause.ENDED_FROM_OUTSIDE, "SIGTERM", Exit(code=0), ready_for_s=1)
    assert isinstance(decide(evolve(config, restart=mode), History(), ended, now=0, rand=0), Again)


@given(seconds)
def test_only_always_restarts_what_ended_well(ready_for_s):
    well = Ending(Cause.EXITED, "done", Exit(code=0), ready_for_s)
    for mode in RestartMode:
        decision = decide(evolve(config, restart=mode), History(), well, now=0, rand=0)
        assert isinstance(decision, Again if mode is RestartMode.ALWAYS else Done)


@given(st.integers(0, 100))
def test_a_service_that_is_not_to_blame_pays_nothing(shortages):
    story = [(0.0, Ending(Cause.SHORTAGE, "no process to be had"))] * shortages
    for _, _, decision in relive(config, story):
        assert isinstance(decision, Again)
        assert decision.history.left(config, now=0) == config.max_restart_count


@given(st.integers(1, 20), rands)
def test_to_whoever_waits_a_start_goes_on_while_its_next_try_comes_at_once(tries, rand):
    story = [(0.0, Ending(Cause.PORT_LOST, "a stranger was faster"))] * tries
    for _, _, decision in relive(config, story, rand):
        assert decision.same_try == (decision.delay_s < 0.5)
    assert not decide(evolve(config, restart_delay=0), History(), crash, now=0, rand=rand).same_try


@given(st.floats(0, 59), st.floats(60, 1000))
def test_all_is_forgiven_after_a_stable_time(short, long):
    history = History(restarts=(0.0, 1.0, 2.0), total=3)
    assert isinstance(decide(config, history, evolve(crash, ready_for_s=short), now=3, rand=0), GiveUp)
    again = decide(config, history, evolve(crash, ready_for_s=long), now=3, rand=0.5)
    assert again == Again(config.restart_delay, History((3,), 0, 4))


def test_the_delay_doubles_up_to_its_maximum():
    generous = evolve(config, max_restart_count=100, restart_delay=5, restart_delay_max=60)
    delays = [d.delay_s for _, _, d in relive(generous, [(0.0, crash)] * 6) if isinstance(d, Again)]
    assert delays == [5, 10, 20, 40, 60, 60]


@given(stories, rands)
def test_who_sets_zero_waits_a_tenth_of_a_second_at_most_however_often_and_however_it_ended(story, rand):
    hot = evolve(config, restart=RestartMode.ALWAYS, max_restart_count=100, restart_delay=0)
    for _, ending, decision in relive(hot, story, rand):
        if isinstance(decision, Again) and not ending.blameless:
            first = len(decision.history.restarts) == 1
            assert decision.delay_s == (0 if first else pytest.approx(0.1 * (1 + JITTER * (2 * rand - 1))))


@pytest.mark.parametrize("ending", [crash, evolve(crash, exit=Exit(code=0))], ids=["crash", "exit 0"])
def test_a_zero_delay_holds_once_and_is_a_tenth_of_a_second_from_then_on(ending):
    hot = evolve(config, restart=RestartMode.ALWAYS, max_restart_count=100, restart_delay=0)
    delays = [d.delay_s for _, _, d in relive(hot, [(0.0, ending)] * 6) if isinstance(d, Again)]
    assert delays == [0, 0.1, 0.1, 0.1, 0.1, 0.1]


def test_crashing_every_two_windows_goes_on_for_ever_at_the_first_delay():
    story = [(2 * config.restart_window, crash)] * 50
    decisions = [decision for _, _, decision in relive(evolve(config, stable_after=86400), story)]
    assert [d.delay_s for d in decisions] == [config.restart_delay] * 50


def test_out_of_budget_says_so_with_the_reason():
    *_, (_, _, last) = relive(config, [(0.0, crash)] * 10)
    assert last == GiveUp("it fell (given up after 3 restarts within 300 s)")


def test_a_fixed_port_that_is_taken_is_final_at_the_first_start_only():
    taken = Ending(Cause.PORT_TAKEN, "port 80 is held by nginx")
    assert isinstance(decide(config, History(), taken, now=0, rand=0), GiveUp)
    assert isinstance(decide(config, History((0,), 0, 1), taken, now=0, rand=0), Again)


def test_an_exit_reads_as_a_person_would_say_it():
    assert [str(e) for e in (Exit(code=1), Exit(signal=9), Exit(signal=40), Exit())] == [
        "exit code 1",
        "SIGKILL",
        "signal 40",
        "unknown",
    ]


@given(configs, st.one_of(st.none(), seconds))
def test_a_job_that_exits_with_0_has_completed_under_every_policy(config, ready_for_s):
    completed = Ending(Cause.COMPLETED, "completed", Exit(code=0), ready_for_s)
    assert decide(config, History(), completed, now=0, rand=0) == Done()


lost = Ending(Cause.NODE_LOST, "node b was lost (silent for 15 s)", Exit(node_lost="it was"), ready_for_s=1)


def test_what_is_lost_with_its_node_starts_again_at_once_and_uses_no_budget():
    once = decide(config, History(), lost, now=0, rand=0.5)
    assert once == Again(0.0, History((), blameless=1, total=1))
    assert once.same_try
    assert once.history.left(config, now=0) == config.max_restart_count
    again = decide(config, once.history, lost, now=0, rand=0)
    assert again.delay_s >= MIN_REPEATED_DELAY_S * (1 - JITTER), "launches that fail at once make no hot loop"


def test_a_job_that_was_lost_with_its_node_is_not_repeated():
    job = ServiceConfig(command=["work"], restart=RestartMode.NEVER)
    for ending in (lost, evolve(lost, exit=None, ready_for_s=None)):  # also where its launch was not answered
        decision = decide(job, History(), ending, now=0, rand=0.5)
        assert isinstance(decision, GiveUp)
        assert decision.reason == (
            "node b was lost (silent for 15 s); what it had done is not known, so it is not repeated"
        )
