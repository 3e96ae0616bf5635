"""The boundary to an author's code.

1. Whatever is raised in it becomes a value, but the host's own cancellation and a Ctrl-C at the terminal.
2. Each turn ends with one event, whatever is raised and wherever; the session and others go on.
3. What is said of an exception never fails, and is bounded.
"""

import asyncio
import signal
import threading

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmgr.agent.limits import SessionLimits
from agentmgr.agent.runtime import remedy
from agentmgr.boundary import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    Failure,
    attempt,
    causes,
    contain,
    describe,
    name_of,
    report,
    shown,
    traceback_of,
)
from agentmgr.errors import leaves
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted


class Fatal(BaseException):
    """A library's own way out."""


class Mute(Exception):
    def __str__(self):
        raise Fatal("no text")

    __repr__ = __str__


class Odd(Exception):
    """All that Python may ask of an exception fails, or is not what it should be."""

    def __str__(self):
        return self.response["message"]

    def __bool__(self):
        raise Fatal

    def __eq__(self, other):
        raise Fatal

    __hash__ = Exception.__hash__
    __notes__ = property(lambda self: 1 / 0)
    __cause__ = property(lambda self: 1 / 0)


class Text(str):
    def __len__(self):
        raise Fatal

    __format__ = __getitem__ = encode = __len__


class Named(Exception):
    def __str__(self):
        return Text("a text of its own")


class OddGroup(BaseExceptionGroup):
    exceptions = property(lambda self: 1 / 0)

    def derive(self, members):
        raise Fatal


def stranger():
    """A `Cancelled` of a scope that is gone."""
    kept = []

    async def main():
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                kept.append(error)
                raise

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    thread.join()
    return kept[0]


def looped():
    error = ValueError("raised from itself")
    error.__cause__ = error
    return error


def deep():
    error = ValueError()
    for _ in range(2000):
        error = ExceptionGroup("", [error])
    return error


FORMS = {
    "value error": lambda: ValueError("bad"),
    "exit": lambda: SystemExit(1),
    "exit with an object": lambda: SystemExit(Mute()),
    "keyboard interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "fatal": lambda: Fatal("x"),
    "cancelled, of asyncio": asyncio.CancelledError,
    "cancelled, of another scope": stranger,
    "stop": lambda: StopIteration(1),
    "async stop": lambda: StopAsyncIteration(1),
    "recursion": lambda: RecursionError("deep"),
    "memory": MemoryError,
    "mute": Mute,
    "odd": Odd,
    "a text of its own": Named,
    "half a character": lambda: ValueError("\ud800"),
    "a megabyte": lambda: ValueError("x" * 2**20),
    "from itself": looped,
    "a group": lambda: BaseExceptionGroup("", [Fatal(), KeyboardInterrupt(), stranger(), Mute()]),
    "a group of its own": lambda: OddGroup("", [Fatal()]),
    "a deep group": deep,
    "a long name": lambda: type("E" * 100_000, (Exception,), {})(),
}
forms = pytest.mark.parametrize("form", FORMS)


@forms
async def test_what_is_raised_becomes_a_value(form):
    error = FORMS[form]()

    async def work():
        raise error

    outcome = await contain(work)
    assert type(outcome) is Failure
    if not isinstance(error, StopIteration | StopAsyncIteration):  # Python makes another of these
        assert outcome.error is error

    def call():
        raise error

    assert attempt(call).error is error


@forms
async def test_what_is_said_of_it_is_short_and_valid_whatever_it_is(form, caplog):
    error = FORMS[form]()
    assert len(name_of(error)) < 200
    for text, limit in ((describe(error), 2 * MAX_MESSAGE), (traceback_of(error), 2 * MAX_TRACEBACK)):
        assert type(text) is str
        assert 0 < len(text) < limit
        text.encode()
    attempt(lambda: list(causes(error)))
    report("it failed", error)
    assert "it failed" in caplog.text


@forms
async def test_a_hint_is_searched_for_in_any_exception(form):
    attempt(lambda: remedy(FORMS[form](), Runtime.TRIO))


async def test_a_hint_is_found_behind_other_exceptions():
    error = ValueError("outer")
    error.__context__ = ExceptionGroup("", [looped(), RuntimeError("no running event loop")])
    assert "asyncio" in remedy(error, Runtime.TRIO)


async def test_a_log_handler_of_the_authors_may_fail_too(caplog):
    class Handler(type(caplog.handler)):
        def emit(self, record):
            raise Fatal

    from agentmgr.boundary import logger

    handler = Handler()
    logger.addHandler(handler)
    try:
        report("it failed", ValueError())
    finally:
        logger.removeHandler(handler)


async def test_a_cancel_is_the_hosts_while_a_scope_around_is_cancelled():
    with trio.move_on_after(0) as scope:
        pytest.fail(f"not cancelled: {await contain(trio.sleep_forever)}")
    assert scope.cancelled_caught


async def test_a_cleanup_that_fails_while_being_cancelled_is_logged_and_the_cancel_goes_on(caplog):
    async def fails_in_cleanup():
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("in clean-up")

    async def work():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_in_cleanup)
            await trio.sleep_forever()

    with trio.move_on_after(0.01) as scope:
        pytest.fail(f"not cancelled: {await contain(work)}")
    assert scope.cancelled_caught
    assert "in clean-up" in caplog.text


def test_a_ctrl_c_is_nobodys_value():
    async def work():
        signal.raise_signal(signal.SIGINT)

    async def in_a_nursery():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)

    async def main(pressed):
        pytest.fail(f"contained: {await contain(pressed)}")

    # A suite that runs in the background has inherited SIGINT as ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for pressed in (work, in_a_nursery):
            with pytest.raises(KeyboardInterrupt):
                trio.run(main, pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_value_is_shown_in_any_case():
    for value in (Mute(), Text("x"), "\ud800", "x" * 10**6):
        assert len(shown(value).encode()) < 2 * MAX_MESSAGE


# Each place where an author's code may raise: given an exception's maker, an agent that raises for "fail".


def _plain(make):
    def agent(message):
        if message == "fail":
            raise make()
        return "fine"

    return agent


def _coroutine(make):
    async def agent(message):
        return _plain(make)(message)

    return agent


def _generator(make):
    def agent(message):
        yield "so far"
        _plain(make)(message)

    return agent


def _async_generator(make):
    async def agent(message):
        yield "so far"
        _plain(make)(message)

    return agent


def _cleanup(make):
    async def agent(message):
        try:
            yield object() if message == "fail" else "fine"  # an object is no event
        finally:
            _plain(make)(message)

    return agent


def _closed_and_goes_on(make):
    async def agent(message):
        try:
            yield object() if message == "fail" else "fine"
        except GeneratorExit:
            yield "more"

    return agent


def _mapping(make):
    class Event(dict):
        def get(self, name, default=None):
            raise make()

    async def agent(message, session):
        if message == "fail":
            await session.emit(Event(event="x"))
        return "fine"

    return agent


def _answer(make):
    class Answer(dict):
        def items(self):
            raise make()

    def agent(message):
        return Answer(x=1) if message == "fail" else "fine"

    return agent


def _class(make):
    class Answer:
        @property
        def __class__(self):
            raise make()

    def agent(message):
        return Answer() if message == "fail" else "fine"

    return agent


def _object(make):
    class Agent:
        async def on_session_start(self, session):
            session.state["x"] = 1

        def on_message(self, session, message):
            return _plain(make)(message)

        def check_health(self):
            raise make()

        async def on_session_end(self, session):
            raise make()

    return Agent()


def _run(make):
    class Agent:
        async def run(self, text):
            return _plain(make)(text)

    return Agent()


def _history(make):
    class History(list):
        def append(self, item):
            raise make()

    async def agent(message, session):
        session.history = History() if message == "fail" else []
        if message == "fail":
            raise make()
        return "fine"

    return agent


RUNTIMES = st.sampled_from([Runtime.TRIO, Runtime.ASYNCIO])
PLACES = (_plain, _coroutine, _generator, _async_generator, _cleanup, _closed_and_goes_on, _mapping, _answer,
          _class, _object, _run, _history)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(PLACES), st.sampled_from(list(FORMS)), st.sampled_from([Runtime.TRIO, Runtime.ASYNCIO])
)
def test_a_turn_that_fails_ends_with_one_event_and_nobody_else_notices(place, form, runtime):
    async def main():
        async with (
            hosted(place(FORMS[form]), runtime=runtime) as url,
            bare_client(url) as client,
            bare_client(url) as other,
        ):
            assert (await other.ask("hi"))["content"] in ("fine", "so far")
            end = await client.ask("fail", step_id="it")
            assert end["event"] == "agent.error"
            assert (await client.ask("hi"))["content"] in ("fine", "so far")
            assert (await other.ask("hi"))["content"] in ("fine", "so far")
            ends = [event["step_id"] for event in client.events if event["event"] in TURN_ENDS]
            assert len(ends) == 2
            assert ends[0] == "it"
            url.sessions.end_all("test")
            await client.until("agent.session_end")

    trio.run(main)


@forms
@pytest.mark.parametrize("runtime", [Runtime.TRIO, Runtime.ASYNCIO])
async def test_a_session_whose_start_fails_ends_and_says_why(form, runtime):
    class Agent:
        async def on_session_start(self, session):
            raise FORMS[form]()

        async def on_message(self, session, message):
            return "never"

        async def on_session_end(self, session):
            raise FORMS[form]()

    async with hosted(Agent(), runtime=runtime) as url:
        for _ in range(2):
            async with bare_client(url) as client:
                await client.say("user.create_session")
                await client.until("agent.error")
                assert (await client.until("agent.session_end"))["content"] == {"reason": "failed"}


async def test_a_plain_agent_whose_own_loop_was_cancelled_ends_its_turn_alone():
    async def work():
        inner = asyncio.create_task(asyncio.sleep(9))
        await asyncio.sleep(0)
        inner.cancel()
        await inner

    def agent(message):
        return "fine" if message == "ok" else asyncio.run(work())

    async with hosted(agent) as url, bare_client(url) as client, bare_client(url) as other:
        assert (await client.ask("fail"))["content"]["type"] == "CancelledError"
        assert (await other.ask("ok"))["content"] == "fine"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # trio says so, and is right
async def test_a_generator_that_was_abandoned_in_a_nursery_ends_its_turn_alone():
    """It leaves a nursery open in the task that runs the turn."""

    async def numbers():
        async with trio.open_nursery():
            yield 1

    async def agent(message):
        if message == "fail":
            async for number in numbers():
                return number
        return "fine"

    async with hosted(agent) as url, bare_client(url) as client, bare_client(url) as other:
        assert (await client.ask("fail"))["event"] == "agent.error"
        assert (await client.ask("hi"))["content"] == "fine"
        assert (await other.ask("hi"))["content"] == "fine"


async def test_a_scope_that_was_left_open_ends_its_turn_alone():
    async def agent(message):
        if message == "fail":
            trio.CancelScope().__enter__()
        return "fine"

    async with hosted(agent) as url, bare_client(url) as client:
        assert (await client.ask("fail"))["event"] == "agent.error"
        assert (await client.ask("hi"))["content"] == "fine"


async def test_a_blocking_generator_is_closed_in_a_thread_of_its_own():
    closed_in = []

    def agent(message):
        try:
            yield object()
        finally:
            closed_in.append(threading.current_thread())

    async with hosted(agent) as url, bare_client(url) as client:
        assert (await client.ask("hi"))["event"] == "agent.error"
    assert closed_in != []
    assert threading.main_thread() not in closed_in


async def test_a_session_that_ends_runs_none_of_the_messages_that_wait():
    ran = []

    async def agent(message):
        ran.append(str(message))
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ValueError("swallowed") from None

    async with hosted(agent, limits=SessionLimits()) as url, bare_client(url) as client:
        await client.open()
        await client.say("user.message", content="1")
        await client.say("user.message", content="2")
        await client.say("ping")
        await client.until("pong")
        url.sessions.end_all("test")
        await client.until("agent.session_end")
    assert ran == ["1"]


# Asyncio's loop: what would end it.


async def _exits():
    raise SystemExit(1)


async def _cancels_all():
    for task in asyncio.all_tasks():
        task.cancel()


async def _stops():
    asyncio.get_running_loop().stop()


async def _calls_back():
    def interrupt():
        raise KeyboardInterrupt

    asyncio.get_running_loop().call_soon(interrupt)


@pytest.mark.parametrize("harm", [_exits, _cancels_all, _stops, _calls_back])
async def test_a_task_of_the_authors_does_not_end_the_asyncio_loop(harm):
    async def agent(message):
        if message == "fail":
            await asyncio.create_task(harm())
            await asyncio.sleep(0)
        return "fine"

    async with hosted(agent, runtime=Runtime.ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("fail"))["event"] in ("agent.error", "agent.final_answer")
        assert (await client.ask("hi"))["content"] == "fine"


def test_of_a_long_chain_of_causes_the_first_hundred_are_looked_at():
    error = ValueError("the first")
    for _ in range(1000):
        after = ValueError("a later one")
        after.__cause__ = error
        error = after
    assert len(list(causes(error))) == 100


def test_an_exception_that_only_says_that_it_is_a_group_is_none():
    class Liar(Exception):
        __class__ = property(lambda self: ExceptionGroup)

    liar = Liar()
    assert list(leaves(liar)) == list(causes(liar)) == [liar]
