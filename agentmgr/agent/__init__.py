"""The host: it runs inside a service's process, loads an agent file and serves the agent to clients.

An agent file needs nothing from here; an author who wants more imports the names below. What clients see is
`agentmgr.protocol`.

In reading order:

    host             loads the file, makes the agent, serves it, ends in good order; `__main__` is its command
    load, imports    find the agent in a file or module, and the author's modules before ours
    adapt, adapters  make one kind of agent (`HostedAgent`) of whatever the factory returned;
                     `signatures` checks what its methods take
    runtime, aio     where the author's code runs: in trio, or on an asyncio loop in a thread
    server, door     take a connection, judge its handshake, decide who may connect and what is believed
    client_link      one client's socket: frames become calls on sessions, events become frames. Under it:
                     `client_events` (what each event does), `link_sessions` (which sessions it reads),
                     `link_stream` (writes), `incoming` (judges frames), `answers` (what waits), `link_log`
                     and `link_resume` (another host goes on)
    session_registry all sessions of the host, and how one comes from the journal; `session_ids` makes their
                     ids and remembers how they ended
    session          one conversation: what the author is handed, and its life. Under it: `turn` (messages
                     that are not answered yet), `work` (what happens in a turn), `questions`
    transcript       what is said in it: `replay` (the last events), `readers` (the connections that read
                     them), `history` (the turns before)
    keeping          what of it goes to the journal; `restoring` is the way back
    budget, limits   what all clients together may make the host keep, and each limit with its reason;
                     `holdings`, what a session has of it
    author           what of a session an author is handed
    events, message  the values that an author makes and gets
    drain, health    what a manager asks the host; `loaded`, which modules it has imported
    output           what a full disk does to a `print`

Invariants:

* A turn ends with exactly one of `protocol.TURN_ENDS`, whatever the author's code does.
* The events of a session are numbered without holes. A client gets each once and in order, or is sent the
  gap; and of a durable session none before the journal has committed it.
* A failure of one client, session or turn ends that one alone: each has a boundary (`boundary.contain`).
* Nothing grows without bound: replay, history, queues and answers are limited in bytes, each and together.
* What a client says of itself is believed only with the gateway's proof (`door`).
* The author's code never blocks the host: blocking functions run in threads, asyncio in a loop of its own.

Words: *author*, who wrote the agent file; *link*, the host's side of a socket; *reader*, how far a link is
in a session's events; *to attach*, to give a session to a link; *gap*, events that are gone; *dressed*, a
session as code of another runtime can call it.

It knows nothing of managers, databases, rules or services, and imports only what a fresh child process can
afford: of the models `host_config` alone, no HTTP framework, and asyncio only when the agent needs it.
"""

from .author import Session
from .events import Event, final_answer, partial_answer, thinking, tool_call, tool_result
from .message import Client, Decision, Message

__all__ = [
    "Client",
    "Decision",
    "Event",
    "Message",
    "Session",
    "final_answer",
    "partial_answer",
    "thinking",
    "tool_call",
    "tool_result",
]
