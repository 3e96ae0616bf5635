"""The state table: over arbitrary sequences of events, against the rules that its docstring states."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentmgr.core.lifecycle import TRANSITIONS, InstanceEvent, after
from agentmgr.errors import IllegalTransition
from agentmgr.models import ServiceStatus

E, S = InstanceEvent, ServiceStatus


def test_every_status_is_in_the_table():
    assert set(TRANSITIONS) == set(ServiceStatus)


@given(st.sampled_from(ServiceStatus), st.sampled_from(InstanceEvent))
def test_an_event_leads_where_the_table_says_or_raises(status, event):
    if event is E.CRASH:
        assert after(status, event) is S.ERROR
    elif event in TRANSITIONS[status]:
        assert after(status, event) is TRANSITIONS[status][event]
    else:
        with pytest.raises(IllegalTransition, match=f"{status}.*{event}"):
            after(status, event)


@given(st.sampled_from(ServiceStatus))
def test_a_stop_is_possible_from_everywhere_and_ends_in_stopped(status):
    for event in (E.DRAIN, E.STOP, E.GONE):
        if status is S.STOPPED:
            break
        if event in TRANSITIONS[status]:
            status = after(status, event)
    assert status is S.STOPPED


@given(st.sampled_from([S.DRAINING, S.STOPPING]), st.lists(st.sampled_from(InstanceEvent)))
def test_a_stop_wins(status, events):
    """Once it was asked to stop, nothing makes it run again but a launch after it was stopped."""
    for event in events:
        if event in (E.CRASH, E.LAUNCH):
            continue
        try:
            status = after(status, event)
        except IllegalTransition:
            continue
        assert status in (S.DRAINING, S.STOPPING, S.STOPPED)


class InstanceModel(RuleBasedStateMachine):
    """What happens to a real instance, and what must be seen of it."""

    def __init__(self):
        super().__init__()
        self.status = S.STOPPED
        self.process = False  # whether one runs
        self.proved = False  # whether it has answered a handshake
        self.stopping = False

    def become(self, event):
        self.status = after(self.status, event)

    @precondition(lambda self: not self.process and self.status is not S.STOPPING)
    @rule()
    def launch(self):
        self.become(E.LAUNCH)
        self.process, self.proved, self.stopping = True, False, False

    @precondition(lambda self: self.process and not self.proved and not self.stopping)
    @rule()
    def answer(self):
        self.become(E.READY)
        self.proved = True

    @precondition(lambda self: self.status is S.RUNNING)
    @rule()
    def fail_checks(self):
        self.become(E.FAILING)

    @precondition(lambda self: self.status is S.UNHEALTHY)
    @rule()
    def pass_a_check(self):
        self.become(E.WELL)

    @precondition(lambda self: self.process and not self.stopping)
    @rule(outcome=st.sampled_from([E.RETRY, E.GIVE_UP, E.GONE]))
    def die(self, outcome):
        self.become(outcome)
        self.process = False

    @precondition(lambda self: self.process and not self.stopping)
    @rule()
    def stop(self):
        if self.proved:
            self.become(E.DRAIN)
        self.become(E.STOP)
        self.stopping = True

    @precondition(lambda self: self.stopping and self.process)
    @rule()
    def end(self):
        self.become(E.GONE)
        self.process = False

    @precondition(lambda self: self.status in (S.BACKOFF, S.ERROR))
    @rule()
    def stop_without_a_process(self):
        self.become(E.GONE)

    @invariant()
    def only_a_proven_process_is_running(self):
        if self.status in (S.RUNNING, S.UNHEALTHY):
            assert self.process
            assert self.proved
            assert not self.stopping

    @invariant()
    def without_a_process_nothing_looks_alive(self):
        if not self.process:
            assert self.status in (S.STOPPED, S.BACKOFF, S.ERROR)


TestInstanceModel = InstanceModel.TestCase
