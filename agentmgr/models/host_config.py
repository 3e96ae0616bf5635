"""What a service's owner chooses for the process that hosts the agent.

The host imports this and nothing else of the models: it would pay for them at each start.
"""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen

from .fields import DAY_S, between, check_text, option


class Runtime(StrEnum):
    """Which event loop an agent's code runs on."""

    AUTO = "auto"  #: the file's `RUNTIME`, else what it imports, else what its framework needs, else trio
    TRIO = "trio"
    ASYNCIO = "asyncio"


class OnDisconnect(StrEnum):
    """What becomes of a running turn when its client's connection is lost."""

    CONTINUE = "continue"  #: the client reads the answer when it comes back
    CANCEL = "cancel"  #: after `disconnect_grace`


class WhenBusy(StrEnum):
    """What becomes of a message that arrives while a turn runs."""

    QUEUE = "queue"  #: bounded
    REJECT = "reject"
    INTERRUPT = "interrupt"  #: the running turn ends, the new one begins


class Sessions(StrEnum):
    """Where a hosted service's conversations are kept."""

    DURABLE = "durable"  #: in a journal on disk: they outlive the process
    MEMORY = "memory"


class OnCrash(StrEnum):
    """What becomes of a turn that ran when its instance died."""

    REPORT = "report"  #: it ends with `agent.error`
    RETRY = "retry"  #: it runs again from its message, `max_turn_attempts` times at most in all


@frozen
class HostConfig:
    """Which agent is hosted, and how: what a service has in common with `agentmgr serve`.

    A new option of the host is a field here, and nothing else. Durations are in seconds.
    """

    agent_factory_path: str | None = option(
        None, "The agent: agent.py, agent.py:NAME or package.module:NAME.", check_text, argument=True
    )
    runtime: Runtime = option(
        Runtime.AUTO,
        "The event loop of the agent's code; auto: RUNTIME in the file, else by what it imports.",
    )
    max_conversations: int | None = option(
        None,
        "Sessions that a hosted instance keeps at a time, also without a connection; 0: any number.",
        between(0, 1_000_000),
        unset="as many as may connect",
    )
    session_timeout: float = option(
        1800.0,
        "Seconds that a session in memory only is kept without a connection; 0: for ever.",
        between(0, 30 * DAY_S),
    )
    session_idle: float = option(
        60.0,
        "Seconds without a connection and a turn until a durable session leaves memory; 0: never.",
        between(0, 30 * DAY_S),
    )
    state_max_bytes: int = option(
        2**20, "The largest `session.state` of a durable session, as JSON.", between(0, 2**30)
    )
    on_crash: OnCrash = option(
        OnCrash.REPORT,
        "What becomes of a turn whose instance died: report says so to the client, retry runs it again.",
    )
    max_turn_attempts: int = option(2, "How often such a turn is begun at most.", between(1, 100))
    max_message_bytes: int = option(2**20, "The largest message; 0: any size.", between(0, 2**31))
    turn_timeout: float = option(0.0, "Seconds for one answer; 0: any time.", between(0, 30 * DAY_S))
    confirm_timeout: float = option(
        300.0, "Seconds for a human to confirm; then it means no.", between(0.1, 30 * DAY_S)
    )
    on_disconnect: OnDisconnect = option(
        OnDisconnect.CONTINUE, "What a turn does when its client disconnects."
    )
    disconnect_grace: float = option(
        0.0, "Seconds until the turn of a client that disconnected is cancelled.", between(0, DAY_S)
    )
    when_busy: WhenBusy = option(WhenBusy.QUEUE, "What to do with a message that comes during a turn.")
