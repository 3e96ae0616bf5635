"""`agentmgr questions …`"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import asyncclick as click

from ...core.plain_text import yes_or_no
from ...errors import InvalidRequest, SessionNotFound
from ...models.sessions import SHOWN_OF_AN_ID
from ..group import COMMANDS, Cli, DefaultGroup, common_options, format_option, subcommand
from ..managers import for_reading, running
from ..out import note, say, say_json
from ..render import ago, print_table
from ..screen import question_text

GONE = (
    "an instance that asked is gone: when its service runs, that question is closed, "
    "or asked again where --on-crash is retry"
)


@click.group(
    "questions",
    cls=DefaultGroup,
    default="list",
    short_help=COMMANDS["questions"],
    example="agentmgr questions\nagentmgr questions answer ses_3f0c9a5e yes",
)
@common_options
def command() -> None:
    """What agents ask a person, in the sessions of all services; `agentmgr questions` lists what is open."""


@subcommand("list", short_help="List the open questions.", example="agentmgr questions list")
@format_option
async def _list(cli: Cli, output: str) -> None:
    """List the questions that wait for an answer, the oldest first."""
    async with for_reading(cli) as manager:
        found = await manager.sessions.questions()
    if output == "json":
        say_json(found)
        return
    print_table(
        ["session", "service", "owner", "asked", "step", "question"],
        [
            [
                one.session_id[:SHOWN_OF_AN_ID],
                one.service,
                one.owner,
                f"{ago(one.asked_at)} ago",
                one.step_id,
                f"{question_text(one.content)}{' (its instance is gone)' if one.instance_id is None else ''}",
            ]
            for one in found
        ],
        empty="no question is open",
        spare=["step", "owner"],
    )
    if any(one.instance_id is None for one in found):
        note(GONE)


F = TypeVar("F", bound=Callable[..., Any])


def answer_arguments(function: F) -> F:
    for decorate in (
        click.option("--step", metavar="STEP", help="Which, where several are open in the session."),
        click.argument("answer", metavar="yes|no"),
        click.argument("id"),
    ):
        function = decorate(function)
    return function


@subcommand("answer", short_help="Answer a question.", example="agentmgr questions answer ses_3f0c9a5e yes")
@answer_arguments
async def _answer(cli: Cli, id: str, answer: str, step: str | None) -> None:
    """Answer the question that is open in a session; the beginning of the session's id is enough."""
    await give_answer(cli, id, answer, step)


async def give_answer(cli: Cli, id: str, answer: str, step: str | None) -> None:
    if (confirmed := yes_or_no(answer)) is None:
        raise click.UsageError(f"The answer is yes or no, not {answer!r}.")
    manager = await running(cli)
    fit = [
        one
        for one in await manager.sessions.questions()
        if one.session_id.startswith(id) and step in (None, one.step_id)
    ]
    if not fit:
        raise SessionNotFound(f"no such question is open in a session {id!r}: `agentmgr questions` lists all")
    if len(fit) > 1:
        raise InvalidRequest(f"{len(fit)} questions fit {id!r}: give more of the id, or --step")
    await manager.sessions.answer(fit[0].session_id, fit[0].step_id, confirmed=confirmed)
    say("answered ", "yes" if confirmed else "no", " to: ", question_text(fit[0].content))


for _command in (_list, _answer):
    command.add_command(_command)
