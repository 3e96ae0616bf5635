"""For programs that talk to a manager or to an agent, rather than being one.

Two clients that share nothing, and each of which imports only what it needs:

    session    `open_session`: a conversation with an agent that survives its connections
    talk       what it says and hears, under trio and asyncio
    events     what an agent says, as a value (`AgentEvent`)
    transport  one WebSocket connection, over TCP, TLS or a stream of the caller's

    api        `ManagerClient`: the methods of `AgentManager`, over the REST API or the control socket; in
               `services`, `routing`, `tokens` and `nodes` are those for them
    sessions   `ManagerClient.sessions`: the conversations
    rest       JSON calls, pages, and the manager's errors raised again
    http       one HTTP request per connection, read whole or in pieces

    aio        both for asyncio, where the two above need trio
    trio_thread  how they call it

Invariants:

* A program that uses `open_session` sees each event once and in order. After a cut the session is taken up
  where it was, and messages that may not have arrived are sent again under the same `step_id`, which the
  host takes once. Where the host could not keep everything, a `system.notice` with the code `gap` says so.
* Events are acknowledged when they are in the program's queue, and that queue is bounded: a slow program
  slows its agent.
* `ManagerClient` raises what `AgentManager` raises: an error travels as its `code`, and comes back as the
  class of `agentmgr.errors` with that code.

Words: *unconfirmed*, sent, and no event has shown yet that the agent has it; *resumed*, on the present
connection the agent has said that the session goes on; *lost*, the agent no longer has the session
(`SessionLost.reason`).

It must not import the manager, the supervisor or the gateway: it works on another machine, against any
version of the same API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import later

if TYPE_CHECKING:
    from .api import ManagerClient as ManagerClient
    from .session import AgentSession as AgentSession
    from .session import open_session as open_session

__all__ = ["AgentSession", "ManagerClient", "open_session"]

# Each brings libraries that the other has no need of.
__getattr__ = later(__name__, {"ManagerClient": "api", "AgentSession": "session", "open_session": "session"})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
