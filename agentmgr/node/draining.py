"""A node has its manager drain it: what ends the machine, such as the preStop hook of a pod, calls this.

It needs neither the daemon nor a key to the manager's API: the node's certificate says who asks, and nobody
but the node can ask for it this way. One JSON object per line: a `DrainMe` asks, a `Drained` is the answer;
empty lines show that the other side lives. The manager stops moving anything when the connection ends.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from attrs import frozen

from ..codec import from_answer, parse_json, to_json
from ..credentials import Credentials
from ..dialing import ManagerAddress, NotNow, dial
from ..errors import CannotReachManager, InvalidRequest
from ..link import HEARTBEAT_S, SILENCE_S, Link
from ..models import DrainedNode
from .talk import talk

DRAIN_PROTOCOL = "agentmgr-drain/1"

T = TypeVar("T")

_PAUSE_S = 0.5  #: before a manager that is not there is dialled again


@frozen
class DrainMe:
    timeout_s: float


@frozen
class Drained:
    done: DrainedNode | None
    refusal: str = ""


def asked(stream: trio.abc.Stream) -> Link[Drained, DrainMe]:
    """The manager's end."""
    return Link(stream, _encode, partial(_decode, DrainMe), heartbeat_s=HEARTBEAT_S, silence_s=SILENCE_S)


async def drain(directory: Path, manager: ManagerAddress, timeout_s: float) -> DrainedNode:
    """Drains the node of this directory. A manager that goes away meanwhile is asked again.

    Raises `InvalidRequest` where it refuses, `CannotReachManager` where it does not answer in time,
    `CannotUseCluster`.
    """
    credentials, give_up_at = Credentials(directory / "credentials"), trio.current_time() + timeout_s
    while True:
        left_s = max(0.0, give_up_at - trio.current_time())
        try:
            stream = await dial(manager, credentials, DRAIN_PROTOCOL)
            try:
                return await _ask(stream, left_s)
            finally:
                await trio.aclose_forcefully(stream)
        except (OSError, NotNow) as error:
            if trio.current_time() + _PAUSE_S > give_up_at:
                raise CannotReachManager(f"no manager answers at {manager}: {error}") from None
        await trio.sleep(_PAUSE_S)


async def _ask(stream: trio.abc.Stream, timeout_s: float) -> DrainedNode:
    link: Link[DrainMe, Drained] = Link(
        stream, _encode, partial(_decode, Drained), heartbeat_s=HEARTBEAT_S, silence_s=SILENCE_S
    )
    answers: list[Drained] = []
    with trio.CancelScope() as scope:

        def receive(answer: Drained) -> None:
            answers.append(answer)
            scope.cancel()

        link.put(DrainMe(timeout_s))
        why = await talk(link, receive)
    if not answers:
        raise NotNow(why)
    if (done := answers[0].done) is None:
        raise InvalidRequest(answers[0].refusal)
    return done


def _encode(message: DrainMe | Drained) -> bytes:
    return to_json(message).encode() + b"\n"


def _decode(kind: type[T], line: bytes) -> T:
    return from_answer(parse_json(line), kind)
