"""`agentmgr chat`: a terminal client for any agent."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TextIO

import asyncclick as click
import trio

from ..client.session import AgentEvent, AgentSession, failure_message, open_session
from ..errors import AgentManagerError, InvalidRequest, SessionLost, TurnFailed

Interrupts = AsyncIterator[int]

DEFAULT_GATEWAY = "ws://localhost:9090"
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


@click.command("chat")
@click.argument("target", required=False)
@click.option("--gateway", envvar="AGENTMGR_GATEWAY", default=DEFAULT_GATEWAY, show_default=True,
              help="Where service names are looked for.")  # fmt: skip
@click.option("--token", envvar="AGENTMGR_TOKEN", help="Sent as `Authorization: Bearer`.")
@click.option("--header", "-H", "headers", multiple=True, metavar="NAME: VALUE", help="One more header.")
@click.option("--session", "session_id", help="Take up this session instead of beginning one.")
@click.option("--once", metavar="TEXT", help="Send one message, print the final answer, and leave.")
@click.option("--yes", is_flag=True, help="Answer every question of the agent with yes.")
@click.option("--raw", is_flag=True, help="Show the events as they come, one JSON object a line.")
async def command(
    target: str | None,
    gateway: str,
    token: str | None,
    headers: tuple[str, ...],
    session_id: str | None,
    once: str | None,
    yes: bool,
    raw: bool,
) -> None:
    """Talk to an agent: TARGET is a ws:// URL or the name of a service; without it, the gateway decides.

    Ctrl-C stops the answer that is being given; at the prompt it leaves, like Ctrl-D. A line that ends in a
    backslash goes on in the next. With --once the exit code is 1 when there was no answer.

    \b
    Example:
      agentmgr chat
      agentmgr chat my-echo-agent --once "hello"
      agentmgr chat ws://localhost:8081
    """
    url = address(target, gateway)
    sent = dict(_header(text) for text in headers)
    if token:
        sent["Authorization"] = f"Bearer {token}"
    screen = Screen(sys.stdout, raw=raw, quiet=once is not None)
    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        try:
            async with open_session(url, headers=sent, session_id=session_id) as session:
                talk = Talk(session, screen, yes=yes)
                if once is not None:
                    await talk.once(once, interrupts)
                else:
                    await talk.through(interrupts)
        except SessionLost as error:
            raise SessionLost(f"{error.message}; run the command again to begin a new one") from None


def address(target: str | None, gateway: str = DEFAULT_GATEWAY) -> str:
    """The URL for what a user named: nothing, a URL, or a service."""
    if target is None:
        return gateway
    return target if "://" in target else f"{gateway.rstrip('/')}/services/{target}"


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise InvalidRequest(f"a header is written as NAME: VALUE, not {text!r}")
    return name.strip(), value.strip()


class Screen:
    """What a person sees of the events."""

    def __init__(self, out: TextIO, *, raw: bool, quiet: bool) -> None:
        self._out = out
        self._raw = raw
        self._quiet = quiet
        self._colours = out.isatty() and "NO_COLOR" not in os.environ
        self._streamed = False

    def show(self, event: AgentEvent) -> None:
        if self._raw:
            self._line(json.dumps(event.fields, ensure_ascii=False))
        elif not self._quiet:
            self._show(event)

    def answer(self, content: Any) -> None:
        if not self._raw:
            self._line(_text(content))

    def _show(self, event: AgentEvent) -> None:
        name, content = event.event, event.content
        if name == "agent.partial_answer":
            self._out.write(str(content))
            self._out.flush()
            self._streamed = True
        elif name == "agent.final_answer":
            self._line("" if self._streamed else _text(content))
        elif name == "agent.thinking":
            self._aside(f"… {_text(content)}")
        elif name == "agent.tool_call" and isinstance(content, Mapping):
            self._aside(f"→ {content.get('tool')} {_text(content.get('args', ''))}")
        elif name == "agent.tool_result" and isinstance(content, Mapping):
            self._aside(f"← {_text(content.get('result', ''))}")
        elif name in ("agent.error", "agent.timeout", "agent.interrupted", "system.error"):
            self._aside(failure_message(event))
        elif name == "system.notice" and event.code == "gap":
            self._aside(f"{content.get('message')}")
        elif name == "system.notice" and event.code == "resumed":
            self._aside("(connected again)")
        elif name == "agent.session_end":
            self._aside("(the session has ended)")

    def _aside(self, text: str) -> None:
        self._line(f"{DIM}{text}{PLAIN}" if self._colours else text)

    def _line(self, text: str) -> None:
        self._out.write(f"\n{text}\n" if self._streamed and text else f"{text}\n")
        self._out.flush()
        self._streamed = False


class Talk:
    """One person, one session."""

    def __init__(self, session: AgentSession, screen: Screen, *, yes: bool) -> None:
        self._session = session
        self._screen = screen
        self._yes = yes

    async def once(self, text: str, interrupts: Interrupts) -> None:
        """Prints the final answer to one message. Raises `TurnFailed`."""
        last = await self._turn(text, interrupts)
        if last.event != "agent.final_answer":
            raise TurnFailed(failure_message(last))
        self._screen.answer(last.content)

    async def through(self, interrupts: Interrupts) -> None:
        """Message after message, until the input ends or Ctrl-C comes at the prompt."""
        while (text := await self._read("you> ", interrupts)) is not None:
            while text.endswith("\\"):
                more = await self._read("...> ", interrupts)
                text = f"{text[:-1]}\n{more or ''}"
            if text.strip():
                await self._turn(text, interrupts)

    async def _turn(self, text: str, interrupts: Interrupts) -> AgentEvent:
        turn = await self._session.send(text)
        last = AgentEvent("")
        async with _on_interrupt(interrupts, turn.cancel):
            async for last in turn:
                self._screen.show(last)
                if last.event == "agent.user_confirm":
                    await self._session.respond(last, await self._decide(last))
        return last

    async def _decide(self, question: AgentEvent) -> bool:
        if self._yes:
            return True
        content = question.content if isinstance(question.content, Mapping) else {}
        what = content.get("message") or f"{content.get('tool')} {_text(content.get('args', ''))}"
        answer = await _input(f"{what} [y/N] ")
        return answer is not None and answer.strip().lower() in ("y", "yes")

    async def _read(self, prompt: str, interrupts: Interrupts) -> str | None:
        """One line; None at the end of the input and at Ctrl-C."""
        line: str | None = None
        with trio.CancelScope() as scope:
            async with _on_interrupt(interrupts, partial(_cancel, scope)):
                line = await _input(prompt)
        return line


@asynccontextmanager
async def _on_interrupt(interrupts: Interrupts, do: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Inside the block, Ctrl-C does this."""
    failure: AgentManagerError | None = None

    async def listen() -> None:
        async for _ in interrupts:
            await do()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        try:
            yield
        except AgentManagerError as error:  # it leaves as it is, not as the nursery's group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _cancel(scope: trio.CancelScope) -> None:
    scope.cancel()


async def _input(prompt: str) -> str | None:
    shown = prompt if sys.stdin.isatty() else ""

    def read() -> str | None:
        try:
            return input(shown)
        except EOFError:
            return None

    # Abandoned on Ctrl-C: nothing can take back a read from a terminal.
    return await trio.to_thread.run_sync(read, abandon_on_cancel=True)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
