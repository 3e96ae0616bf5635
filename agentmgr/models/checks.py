"""How a service shows that it is ready, and that it is well: the options `ready` and `health`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from attrs import Attribute, frozen

from .fields import Check, invalid, rule


class CheckKind(StrEnum):
    """What is asked, or waited for."""

    AUTO = "auto"  #: what the service shows decides; see `agentmgr.supervisor.child`
    WEBSOCKET = "websocket"  #: a WebSocket handshake at the path succeeds, and a ping is answered
    HTTP = "http"  #: GET of the path is answered with a status from 200 to 399
    TCP = "tcp"  #: it listens (ready) and takes a connection (health)
    NOTIFY = "notify"  #: READY=1 by sd_notify(3)
    STARTED = "started"  #: it still runs a moment after its start
    WATCHDOG = "watchdog"  #: WATCHDOG=1 by sd_notify(3), again and again
    NONE = "none"  #: its process lives


READY_KINDS = (
    CheckKind.AUTO,
    CheckKind.WEBSOCKET,
    CheckKind.HTTP,
    CheckKind.TCP,
    CheckKind.NOTIFY,
    CheckKind.STARTED,
)
HEALTH_KINDS = (
    CheckKind.AUTO,
    CheckKind.WEBSOCKET,
    CheckKind.HTTP,
    CheckKind.TCP,
    CheckKind.WATCHDOG,
    CheckKind.NONE,
)
WITH_PATH = (CheckKind.WEBSOCKET, CheckKind.HTTP)

_PATH = re.compile(r"/[!-\"$-~]{0,1000}")  # what a request line takes: no spaces, no fragment, ASCII


@frozen
class CheckMethod:
    kind: CheckKind
    path: str = "/"  #: of the kinds `WITH_PATH`

    @classmethod
    def parse(cls, text: str) -> CheckMethod:
        """From `KIND` or `KIND:PATH`, as `check_method` has let it pass."""
        kind, _, path = text.partition(":")
        return cls(CheckKind(kind), path or "/")


def shown(kinds: Iterable[CheckKind]) -> str:
    return ", ".join(f"{kind}[:PATH]" if kind in WITH_PATH else str(kind) for kind in kinds)


def check_method(kinds: Iterable[CheckKind]) -> Check:
    """A validator of `KIND` or `KIND:PATH` with one of these kinds."""
    kinds = tuple(kinds)
    choices = " or ".join(shown(kinds).rsplit(", ", 1))
    patterns = [f"{kind}(:{_PATH.pattern})?" if kind in WITH_PATH else str(kind) for kind in kinds]

    @rule(pattern=f"^({'|'.join(patterns)})$")
    def check(_: Any, attribute: Attribute[Any], value: str) -> None:
        kind, colon, path = value.partition(":")
        if kind not in kinds or (colon and kind not in WITH_PATH):
            raise invalid(attribute.name, f"must be {choices}, not {value!r}")
        if colon and not _PATH.fullmatch(path):
            raise invalid(
                attribute.name,
                f"must have a path that begins with '/' and has no spaces and no '#', as in {kind}:/healthz, "
                f"not {value!r}",
            )

    return check
