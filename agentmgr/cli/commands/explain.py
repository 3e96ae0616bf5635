"""`agentmgr explain`"""

from __future__ import annotations

from difflib import get_close_matches

import asyncclick as click

from ...errors import InvalidRequest
from ...websocket.refusal import WHAT_HELPS, RefusalCode
from ..group import Cli, subcommand
from ..out import say
from ..render import print_table


@subcommand("explain", example="agentmgr explain at_capacity")
@click.argument("code", required=False)
async def command(cli: Cli, code: str | None) -> None:
    """Say what helps a client that the gateway refused: the `code` of its answer; without one, all of them.

    The answer to a refused WebSocket handshake is an HTTP status and `{"code": …, "reason": …}`; the reason
    is a sentence for people, about that client.
    """
    if code is None:
        rows = [(each, status, helps) for each, (status, helps) in WHAT_HELPS.items()]
        print_table(("code", "status", "what helps"), rows, empty="")
        return
    if code not in WHAT_HELPS:
        near = "".join(f"; did you mean {close}?" for close in get_close_matches(code, WHAT_HELPS, 1))
        raise InvalidRequest(f"{code!r} is no code of the gateway's refusals{near}")
    status, helps = WHAT_HELPS[RefusalCode(code)]
    say(f"{code}, HTTP status {status}: {helps}")
