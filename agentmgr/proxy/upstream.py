"""The backend's side of the handshake: ask, and judge the answer."""

from __future__ import annotations

from contextlib import ExitStack, closing
from http import HTTPStatus

import h11
import trio

from ..core.gateway_headers import sets_login
from ..core.proof import PROOF_HEADER
from ..core.routing import Backend
from ..websocket.head import BadResponse, RequestHead, ResponseHead, check_switch, parse_response
from ..websocket.refusal import Refusal, RefusalCode, elsewhere, http_response
from ..websocket.sockets import Wire
from .dialer import Dialer, DialFailed
from .limits import GatewayLimits


class BackendRefused(Exception):
    """The instance answered, and its answer is not a 101: it goes to the client as it is."""

    code = RefusalCode.BACKEND_REFUSED

    def __init__(self, status: int, response: bytes) -> None:
        super().__init__(f"the instance answered {status}")
        self.status = status
        self.response = response


async def open_backend(
    backend: Backend,
    asked: bytes,
    request: RequestHead,
    limits: GatewayLimits,
    *,
    deadline: float,
    dialer: Dialer,
) -> tuple[Wire, ResponseHead]:
    """Connects, asks, and judges the answer; what came behind it is in `wire.ahead`.

    Raises `DialFailed` or `BackendRefused`.
    """
    wire, proof = await dialer.reach(backend, limits, deadline=deadline, key=request.key)
    with ExitStack() as until_answered:
        until_answered.enter_context(closing(wire))
        if proof:
            asked = asked[:-2] + f"{PROOF_HEADER}: {proof}\r\n\r\n".encode()
        answer = await _ask(wire, asked, request, limits, deadline, proved=bool(proof))
        until_answered.pop_all()
    return wire, answer


async def _ask(
    wire: Wire, asked: bytes, request: RequestHead, limits: GatewayLimits, deadline: float, *, proved: bool
) -> ResponseHead:
    received = bytearray()
    too_long = BadResponse(f"the head of its answer is over {limits.head_bytes} bytes")
    try:
        with trio.fail_at(min(deadline, trio.current_time() + limits.handshake_timeout_s)):
            await wire.send_all(asked)
            while (end := received.find(b"\r\n\r\n")) < 0:
                if len(received) > limits.head_bytes:
                    raise too_long
                data = await wire.receive(limits.head_bytes)
                if not data:
                    raise BadResponse("it closed the connection instead of answering")
                received += data
            if end + 4 > limits.head_bytes:
                raise too_long
            answer = parse_response(bytes(received[: end + 4]), max_fields=limits.head_fields)
            if answer.status == 101:
                check_switch(answer, request)
                wire.ahead = bytes(received[end + 4 :])
                return answer
            refusal = await _refusal(wire, bytes(received), limits)
            if answer.status == HTTPStatus.MISDIRECTED_REQUEST and proved:
                if (holder := elsewhere(refusal)) is not None:
                    raise DialFailed(f"{holder} holds the session", retry=True, blame=False, holder=holder)
                raise DialFailed("it was restarted", retry=True, outdated=True)
            raise BackendRefused(answer.status, refusal)
    except trio.TooSlowError:
        raise DialFailed("it did not answer the upgrade in time", retry=False, timed_out=True) from None
    except (BadResponse, OSError) as fault:
        # Asking another one is harmless while not one byte came back.
        raise DialFailed(str(fault), retry=not received) from None


async def _refusal(wire: Wire, received: bytes, limits: GatewayLimits) -> bytes:
    """A backend's answer other than 101, framed anew: h11 knows all the ways in which a body may end."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "backend")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(received)
    head: h11.Response | None = None
    body, left = bytearray(), limits.head_bytes + limits.refusal_bytes
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if left <= 0:  # early answers without end
                    break
                more = await wire.receive(limits.refusal_bytes)
                left -= len(more)
                connection.receive_data(more)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > limits.refusal_bytes:
                    break
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError as error:
        raise BadResponse(f"its refusal is not HTTP/1.1: {error}") from None
    if head is None:
        raise BadResponse("it sent no final answer")
    dropped = {b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade"}
    fields = (
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in head.headers.raw_items()
        if name.lower() not in dropped
    )
    passed_on = tuple(field for field in fields if not sets_login(*field))
    return http_response(head.status_code, passed_on, bytes(body[: limits.refusal_bytes]))


def gateway_fault(failure: DialFailed) -> Refusal:
    """The answer to a client for which no instance could be reached."""
    if failure.timed_out:
        reason = f"the service did not answer in time: {failure.reason}"
        return Refusal(504, RefusalCode.BACKEND_TIMEOUT, reason)
    return Refusal(502, RefusalCode.BAD_GATEWAY, f"the service could not be reached: {failure.reason}")
