"""How a service shows that it is ready, and that it is well: the options `ready` and `health`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from attrs import Attribute, frozen

from .fields import Check, invalid, rule, searcher


class CheckKind(StrEnum):
    """What is asked, or waited for."""

    AUTO = "auto"  #: what the service shows decides; see `agentmgr.supervisor.child`
    WEBSOCKET = "websocket"  #: a WebSocket handshake at the path succeeds, and a ping is answered
    HTTP = "http"  #: GET of the path is answered with a status from 200 to 399
    TCP = "tcp"  #: it listens (ready) and takes a connection (health)
    NOTIFY = "notify"  #: READY=1 by sd_notify(3)
    STARTED = "started"  #: it still runs a moment after its start
    LOG = "log"  #: a line of its output matches a regular expression
    COMMAND = "command"  #: another program, which knows its HOST and PORT, exits with 0
    WATCHDOG = "watchdog"  #: WATCHDOG=1 by sd_notify(3), again and again
    NONE = "none"  #: its process lives


READY_KINDS = (
    CheckKind.AUTO,
    CheckKind.WEBSOCKET,
    CheckKind.HTTP,
    CheckKind.TCP,
    CheckKind.NOTIFY,
    CheckKind.LOG,
    CheckKind.STARTED,
)
HEALTH_KINDS = (
    CheckKind.AUTO,
    CheckKind.WEBSOCKET,
    CheckKind.HTTP,
    CheckKind.TCP,
    CheckKind.COMMAND,
    CheckKind.WATCHDOG,
    CheckKind.NONE,
)
WITH_PATH = (CheckKind.WEBSOCKET, CheckKind.HTTP)
WITH_TEXT = {CheckKind.LOG: "PATTERN", CheckKind.COMMAND: "COMMAND"}

_PATH = re.compile(r"/[!-\"$-~]{0,1000}")  # what a request line takes: no spaces, no fragment, ASCII


@frozen
class CheckMethod:
    kind: CheckKind
    path: str = "/"  #: of the kinds `WITH_PATH`; of those `WITH_TEXT`, the text

    @classmethod
    def parse(cls, text: str) -> CheckMethod:
        """From `KIND` or `KIND:PATH`, as `check_method` has let it pass."""
        kind, _, path = text.partition(":")
        return cls(CheckKind(kind), path or "/")


def shown(kinds: Iterable[CheckKind]) -> str:
    return ", ".join(
        f"{kind}[:PATH]" if kind in WITH_PATH else f"{kind}:{WITH_TEXT[kind]}" if kind in WITH_TEXT else kind
        for kind in kinds
    )


def _check_text(name: str, kind: CheckKind, text: str) -> None:
    try:
        if not text.isprintable():
            raise ValueError("it must be printable, on one line")
        if kind is CheckKind.COMMAND:
            shlex.split(text)
        else:
            searcher(text)
    except ValueError as error:
        raise invalid(name, f"cannot be read: {text!r}: {error}") from None


def check_method(kinds: Iterable[CheckKind]) -> Check:
    """A validator of `KIND` or `KIND:PATH` with one of these kinds."""
    kinds = tuple(kinds)
    choices = " or ".join(shown(kinds).rsplit(", ", 1))
    arguments = dict.fromkeys(WITH_PATH, f"(:{_PATH.pattern})?") | dict.fromkeys(WITH_TEXT, ":.+")
    patterns = [f"{kind}{arguments.get(kind, '')}" for kind in kinds]

    @rule(pattern=f"^({'|'.join(patterns)})$")
    def check(_: Any, attribute: Attribute[Any], value: str) -> None:
        kind, colon, path = value.partition(":")
        takes = kind in WITH_PATH or kind in WITH_TEXT
        if kind not in kinds or (colon and not takes) or (not path and kind in WITH_TEXT):
            raise invalid(attribute.name, f"must be {choices}, not {value!r}")
        if kind in WITH_TEXT:
            _check_text(attribute.name, CheckKind(kind), path)
        elif colon and not _PATH.fullmatch(path):
            raise invalid(
                attribute.name,
                f"must have a path that begins with '/' and has no spaces and no '#', as in {kind}:/healthz, "
                f"not {value!r}",
            )

    return check
