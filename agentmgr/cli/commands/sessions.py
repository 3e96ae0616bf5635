"""`agentmgr sessions …`"""

from __future__ import annotations

import json
from collections.abc import Callable
from textwrap import indent
from typing import Any

import asyncclick as click

from ... import protocol
from ...client.events import decode
from ...core.affinity import named_node
from ...core.plain_text import as_text
from ...errors import InvalidRequest, SessionNotFound
from ...models import Service
from ...models.sessions import (
    SHOWN_OF_AN_ID,
    SessionDetail,
    SessionInfo,
    SessionPage,
    SessionState,
    SessionTurn,
)
from ...protocol import NoticeCode
from ..group import COMMANDS, Cli, Command, DefaultGroup, common_options, each, format_option, subcommand
from ..manager_interface import ReadsManager
from ..managers import for_reading, running
from ..names import SERVICE
from ..out import note, program_output, say, say_json
from ..render import ago, clock, counted, print_fields, print_table, shortened
from ..screen import Screen, question_text
from .questions import GONE, answer_arguments, give_answer

_PAGE = 1000


@click.group(
    "sessions",
    cls=DefaultGroup,
    default="list",
    short_help=COMMANDS["sessions"],
    example="agentmgr sessions my-echo-agent\nagentmgr sessions watch ses_3f0c9a5e",
)
@common_options
def command() -> None:
    """Conversations with hosted agents: `agentmgr sessions [NAME]` lists them.

    Of an id, its beginning is enough where only one session has it.
    """


def _sessions(name: str, help: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    return subcommand(name, short_help=help, example=f"agentmgr sessions {example}")


async def whole_id(manager: ReadsManager, given: str) -> str:
    """The id of the one session whose id begins so. Raises `SessionNotFound`, `InvalidRequest`."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await manager.sessions.list(text=given, limit=_PAGE, cursor=cursor)
        found += [one.session_id for one in page.items if one.session_id.startswith(given)]
        if (cursor := page.next_cursor) is None:
            break
    _note_unreadable(page)
    if given in found or len(found) == 1:
        return given if given in found else found[0]
    if named_node(given):  # a whole id: what is asked for next says what is wrong with its node
        return given
    if found:
        raise InvalidRequest(f"the ids of {len(found)} sessions begin with {given!r}: give more of it")
    raise SessionNotFound(f"the id of no session begins with {given!r}: `agentmgr sessions` lists them")


def _note_unreadable(page: SessionPage) -> None:
    for name in page.unreadable:
        if "://" in name:  # a journal in a Redis
            how = "`agentmgr doctor` says"
        elif " " in name:  # as in `node b`; the name of a service has no space
            how = "`agentmgr nodes` and the manager's log say"
        else:
            how = f"`agentmgr sessions {name}` says"
        note(f"the sessions of {name} cannot be read now: {how} why")


@_sessions("list", "List sessions.", example="list my-echo-agent --state asking")
@click.argument("name", type=SERVICE, required=False)
@click.option("--state", type=click.Choice([str(s) for s in SessionState]), help="Only those in this state.")
@click.option("--owner", metavar="NAME", help="Only those of this owner: the name of a token.")
@click.option("--text", metavar="TEXT", help="Only those with this text in their name or id.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, _PAGE), help="At most so many."
)
@format_option
async def _list(
    cli: Cli,
    name: str | None,
    state: str | None,
    owner: str | None,
    text: str | None,
    limit: int,
    output: str,
) -> None:
    """List the sessions of a service, or of all, the last used first."""
    async with for_reading(cli) as manager:
        page = await manager.sessions.list(
            name, state=SessionState(state) if state else None, owner=owner, text=text, limit=limit
        )
        service = await manager.get_service(name) if name is not None else None
    if output == "json":
        say_json(page.items)
        return
    narrowed = state or owner or text
    print_table(
        ["id", "service", "name", "owner", "state", "turns", "last used", "tokens"],
        [_row(one) for one in page.items],
        empty="no such sessions" if narrowed else _none_kept(service),
        spare=["tokens", "turns", "name"] if name is None else ["service", "tokens", "turns", "name"],
    )
    _note_unreadable(page)
    if page.next_cursor is not None:
        note(f"these are the last {limit}; --limit, --state, --owner and --text choose others")


def _none_kept(service: Service | None) -> str:
    if service is None:
        return "no sessions are kept"
    config = service.config
    if not config.keeps_sessions:
        return f"{service.name} has no sessions that are kept: what is in memory only is not listed"
    return f"{service.name} has no sessions that are kept"


def _row(one: SessionInfo) -> list[object]:
    tokens = one.input_tokens + one.output_tokens
    return [
        one.session_id[:SHOWN_OF_AN_ID],
        one.service,
        one.name and shortened(one.name),
        one.owner,
        one.state,
        one.turns,
        f"{ago(one.last_used_at)} ago",
        tokens or None,
    ]


@_sessions("show", "Show one session: its turns.", example="show ses_3f0c9a5e")
@click.argument("id")
@format_option
async def _show(cli: Cli, id: str, output: str) -> None:
    """Show one session: who it belongs to, its last turns with their times and tools, open questions."""
    async with for_reading(cli) as manager:
        detail = await manager.sessions.get(await whole_id(manager, id))
    if output == "json":
        say_json(detail)
        return
    _print(detail)


def _print(detail: SessionDetail) -> None:
    used = f"{detail.input_tokens} in, {detail.output_tokens} out"
    print_fields(
        [
            ("id", detail.session_id),
            ("service", detail.service),
            ("name", detail.name),
            ("owner", detail.owner),
            ("state", detail.state),
            ("instance", detail.instance_id),
            ("created", detail.created_at),
            ("last used", detail.last_used_at),
            ("ended", detail.ended_at and f"{clock(detail.ended_at)}: {detail.end_reason}"),
            ("turns", detail.turns),
            ("tokens", used if detail.input_tokens or detail.output_tokens else None),
            ("session.state", as_text(detail.session_state) if detail.session_state else None),
        ]
    )
    for turn in detail.history:
        _print_turn(turn)
    for question in detail.questions:
        say()
        say(f"has waited for an answer for {ago(question.asked_at)}: ", question_text(question.content))
        if question.instance_id is None:
            say(f"  {GONE}")
        else:
            say(f"  agentmgr questions answer {detail.session_id[:SHOWN_OF_AN_ID]} yes")


def _print_turn(turn: SessionTurn) -> None:
    took = ""
    if turn.started_at and turn.ended_at:
        took = f", {(turn.ended_at - turn.started_at).total_seconds():.1f} s"
    again = f", begun {counted(turn.attempts, 'time')}" if turn.attempts > 1 else ""
    say()
    say(f"{turn.number}  {clock(turn.accepted_at)}  {turn.ended_by or turn.status}{took}{again}")
    say(_indented(f"you> {as_text(turn.message)}"), lines=True)
    for tool in turn.tools:
        say("  → ", tool)
    if turn.answer is not None:
        say(_indented(as_text(turn.answer)), " (broken off)" if turn.incomplete else "", lines=True)


def _indented(text: str) -> str:
    return indent(text.rstrip("\n"), "  ")


@_sessions("watch", "Show what is said in a session.", example="watch ses_3f0c9a5e")
@click.argument("id")
@click.option(
    "--since", default=0, type=click.IntRange(min=0), help="Only events after the one of this number."
)
@click.option(
    "--follow/--no-follow", default=True, show_default=True, help="Then show new events as they come."
)
@click.option("--raw", is_flag=True, help="Show each event as JSON.")
async def _watch(cli: Cli, id: str, since: int, follow: bool, raw: bool) -> None:
    """Show what was said in a session, then what is said, until it ends."""
    screen = Screen(raw=raw, quiet=False)
    async with for_reading(cli) as manager:
        session_id = await whole_id(manager, id)
        person = (await manager.sessions.get(session_id)).owner or "you"
        async with manager.sessions.events(session_id, since=since, follow=follow, messages=True) as events:
            async for event in events:
                shown = decode(json.dumps(event))
                screen.show(shown)
                if shown.event == protocol.MESSAGE:
                    screen.answer(f"{person}> {as_text(shown.content)}")
                elif shown.event == protocol.USER_CONFIRM and not raw:
                    screen.aside(f"? {question_text(shown.content)}")
                elif shown.code == NoticeCode.ANSWERED and not raw:
                    screen.aside(f"! {shown.content.get('message')}")


@_sessions("say", "Say something in a session.", example="say ses_3f0c9a5e 'and tomorrow?'")
@click.argument("id")
@click.argument("text")
async def _say(cli: Cli, id: str, text: str) -> None:
    """Say something in a session, in its owner's name; its clients see the answer, and so does `watch`."""
    manager = await running(cli)
    session_id = await whole_id(manager, id)
    step_id = await manager.sessions.say(session_id, text)
    say(f"said; the turn is {step_id}")
    note(f"`agentmgr sessions watch {session_id[:SHOWN_OF_AN_ID]}` shows the answer")


@_sessions("cancel", "Stop the turn that runs in a session.", example="cancel ses_3f0c9a5e")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
async def _cancel(cli: Cli, ids: tuple[str, ...]) -> int:
    """Stop the turn that runs in a session; the session goes on."""
    manager = await running(cli)

    async def cancel(given: str) -> None:
        session_id = await whole_id(manager, given)
        await manager.sessions.cancel(session_id)
        say(f"stopped the turn of {session_id[:SHOWN_OF_AN_ID]}")

    return await each(cli, ids, cancel)


@_sessions("answer", "Answer a session's open question.", example="answer ses_3f0c9a5e yes")
@answer_arguments
async def _answer(cli: Cli, id: str, answer: str, step: str | None) -> None:
    """Answer the question that is open in a session, as `agentmgr questions answer` does."""
    await give_answer(cli, id, answer, step)


@_sessions("end", "End a session, and erase it.", example="end ses_3f0c9a5e")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
async def _end(cli: Cli, ids: tuple[str, ...]) -> int:
    """End a session, and erase all that was said in it: `agentmgr sessions export` saves it before."""
    async with for_reading(cli) as manager:

        async def end(given: str) -> None:
            session_id = await whole_id(manager, given)
            await manager.sessions.erase(session_id)
            say(f"erased {session_id}")

        return await each(cli, ids, end)


@_sessions("export", "Print all that is kept of a session.", example="export ses_3f0c9a5e > session.jsonl")
@click.argument("id")
async def _export(cli: Cli, id: str) -> None:
    """Print all that is kept of a session, as lines of JSON: the session, its turns, its events."""
    async with for_reading(cli) as manager:
        async with manager.sessions.export(await whole_id(manager, id)) as pieces:
            with program_output() as write:
                async for piece in pieces:
                    write(piece)


for _command in (_list, _show, _watch, _say, _cancel, _answer, _end, _export):
    command.add_command(_command)
