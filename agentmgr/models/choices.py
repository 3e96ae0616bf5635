"""What a service's owner chooses for the process that hosts the agent.

Apart from `models`, which takes 20 ms to import: the host would pay for it at each start.
"""

from enum import StrEnum


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
