"""HTTP with the clients of fronts: request after request, who may ask, and what is said to those who may not.

The gateway has read and judged the first head. Those that follow on the same wire are judged as strictly
(`websocket.head`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress

import trio
from attrs import evolve

from ..errors import leaves
from ..proxy.access import authenticate, check_origin
from ..proxy.forwarded import Peer
from ..proxy.handshake import ClientGone, read_head, refuse
from ..proxy.intake import Intake
from ..websocket.head import RequestHead, check_upgrade
from ..websocket.refusal import Refusal
from ..websocket.sockets import Wire
from .bounds import Memory
from .exchange import Exchange, Front, Handler, Route, cors
from .http_services import HttpServices
from .problem import HAS_RUN, Headers, Problem

logger = logging.getLogger("agentmgr.gateway")

IDLE_S = 60.0  #: between two requests on one connection
UNLIMITED_BYTES = 64 * 2**20  #: of a body, where the services' own limit is none

INTERNAL = Problem(500, "internal_error", "Something went wrong in agentmgr itself; its log has it.")
_CLOSE = (("Connection", "close"),)
_STOPPING = Problem(503, "gateway_stopping", "The gateway is being stopped.", headers=_CLOSE)
_STOPPING_AMID_A_TURN = Problem(
    HAS_RUN,
    "gateway_stopping",
    "The gateway is being stopped; what the agent was doing may have had its effect already.",
    headers=_CLOSE,
    retry=False,
)


async def serve(
    intake: Intake,
    wire: Wire,
    head: RequestHead,
    peer: Peer,
    front_of: Callable[[RequestHead], Front | None],
    memory: Memory,
    paths: str,
) -> None:
    """Answers requests, one after another, until the client leaves. Raises `ClientGone`, `Refusal`."""
    with ExitStack() as counted:  # a wire that waits for its next request is counted with its last one
        while (front := front_of(head)) is not None:
            counted.close()
            exchange = Exchange(intake, wire, peer, head, memory)
            await _answer(exchange, front, counted)
            if not exchange.may_be_followed():
                counted.close()
                with trio.move_on_after(intake.limits.close_timeout_s):
                    await refuse(wire, b"")
                return
            if (following := await _next_head(intake, wire)) is None:
                return
            head = following
    check_upgrade(head, paths)  # as of a first request: it says that this address speaks WebSocket


async def _next_head(intake: Intake, wire: Wire) -> RequestHead | None:
    """Raises `Refusal`, `ClientGone`; None where the client asks nothing more for a while."""
    await trio.lowlevel.checkpoint()  # it may ask faster than all others are served
    with trio.move_on_after(IDLE_S):
        if not wire.ahead:
            try:
                wire.ahead = await wire.receive(intake.limits.head_bytes)
            except OSError:
                return None
            if not wire.ahead:
                return None
        with trio.move_on_after(intake.limits.head_timeout_s):
            return await read_head(wire, intake.limits)
    return None


async def _answer(exchange: Exchange, front: Front, counted: ExitStack) -> None:
    """Answers one request, whatever is wrong with it. Raises `ClientGone`."""
    intake, head = exchange.intake, exchange.request.head
    problem: Problem | None = _STOPPING
    try:
        exchange.open()
        # Counted apart from connections: a door is a client of the same address.
        counted.enter_context(intake.requests.admit(exchange.request.client_ip, trio.current_time()))
        if _is_preflight(exchange, front):
            await _preflight(exchange)
        elif isinstance(front, HttpServices):
            check_page(intake, head)
            await front.pass_on(exchange)
        else:
            route, exchange.parts = _route(front, head)
            await _admit(exchange)
            await _while_there(exchange, route.handle)
        problem = None
    except ClientGone:
        problem = None
        raise
    except Refusal as refusal:
        intake.connections.refused(refusal.code)
        problem = Problem.of(refusal)
    except Problem as caught:
        problem = caught
    except Exception:  # the boundary: a fault of ours is an answer in the client's protocol too
        logger.exception("internal error in a front: %s %s was not answered", head.method, head.path)
        problem = INTERNAL
    finally:
        exchange.body.close()
        if problem is _STOPPING:
            with trio.CancelScope(shield=True):
                await intake.pacer.wait()
                with trio.move_on_after(intake.limits.close_timeout_s), suppress(ClientGone):
                    await _say(exchange, front, _STOPPING_AMID_A_TURN if exchange.may_run else _STOPPING)
    if problem is not None:
        await _say(exchange, front, problem)


def _route(front: Front, head: RequestHead) -> tuple[Route, dict[str, str]]:
    """Raises `Problem`."""
    method = "GET" if head.method == "HEAD" else head.method
    allowed = []
    for route in front.routes:
        if (parts := route.match(head.path)) is not None:
            if route.method == method:
                return route, parts
            allowed.append(route.method)
    if not allowed:
        raise Problem(404, "unknown_url", f"There is no {head.method} {head.path} here.")
    methods = ", ".join(sorted(allowed))
    raise Problem(405, "method_not_allowed", f"{head.path} takes {methods}.", headers=(("Allow", methods),))


async def _admit(exchange: Exchange) -> None:
    """Reads the body of a client that may ask. Raises `Refusal`, `Problem`, `ClientGone`."""
    intake, head = exchange.intake, exchange.request.head
    check_page(intake, head)
    identity, most = None, 0
    if intake.authenticator is not None:
        bare = evolve(head, target=head.path)  # a ticket in the query is for a WebSocket, and good for one
        identity, _ = await authenticate(bare, intake.authenticator)
    if head.method in ("POST", "PUT", "PATCH"):
        # A page of another origin may post a form or plain text without asking first.
        if head.by_name.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Problem(415, "unsupported_media_type", "Content-Type must be application/json.")
        if head.by_name.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "unsupported_media_type", "Content-Encoding must not be used here.")
        most = min(most_bytes(intake), exchange.body.most)
    exchange.request = evolve(exchange.request, identity=identity, body=await exchange.receive(most))


def check_page(intake: Intake, head: RequestHead) -> None:
    """A browser sends no Origin with what a page gets from its own host, and by DNS rebinding a stranger's
    page has this gateway as its host: so of a browser that host is judged. Raises `Refusal`.
    """
    if "origin" not in head.by_name and head.by_name.get("user-agent", "").startswith("Mozilla/"):
        head = head.replaced("Origin", f"http://{head.by_name['host']}")
    check_origin(head, intake.allowed_origins, intake.lobby.router.own_pages)


def most_bytes(intake: Intake) -> int:
    """Of a body: what the service that takes the most may be sent."""
    most = intake.lobby.router.most_message_bytes
    return 2**20 if most is None else most or UNLIMITED_BYTES


async def _while_there(exchange: Exchange, handle: Handler) -> None:
    """Has the request handled, as long as its client is there. Raises what the handler does, `ClientGone`."""
    gone = False
    raised: BaseException | None = None

    async def watch() -> None:
        nonlocal gone
        await exchange.wait_gone()
        gone = True
        nursery.cancel_scope.cancel()

    async def keep_alive() -> None:
        nonlocal gone
        try:
            await exchange.keep_alive()
        except ClientGone:
            gone = True
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(keep_alive)
        try:
            await handle(exchange)
        except Exception as error:
            raised = next(leaves(error))  # as a nursery of the handler's raised it
        nursery.cancel_scope.cancel()
    if gone:
        raise ClientGone("it left before its answer was complete")
    if raised is not None:
        raise raised


async def _say(exchange: Exchange, front: Front, problem: Problem) -> None:
    """As an answer, or as the end of a stream that has begun. Raises `ClientGone`."""
    if exchange.begun:
        await exchange.cut_off(problem)
        return
    headers = [*problem.headers]
    if not exchange.was_read:
        headers.append(("Connection", "close"))
    if problem.retry is not None:
        headers.append(("X-Should-Retry", "true" if problem.retry else "false"))
    await exchange.reply(problem.status, front.problem(problem), headers)


def _is_preflight(exchange: Exchange, front: Front) -> bool:
    """A service answers its pages itself, unless the gateway says which ones may ask."""
    head = exchange.request.head
    if head.method != "OPTIONS" or not isinstance(front, HttpServices):
        return head.method == "OPTIONS"
    return "access-control-request-method" in head.by_name and bool(cors(exchange.intake, head))


async def _preflight(exchange: Exchange) -> None:
    """What a browser asks before it sends a page's request. Raises `Refusal`, `ClientGone`."""
    head = exchange.request.head
    check_origin(head, exchange.intake.allowed_origins, exchange.intake.lobby.router.own_pages)
    allowed: Headers = ()
    if cors(exchange.intake, head):
        wanted = head.by_name.get("access-control-request-headers", "Authorization, Content-Type")
        allowed = (
            ("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE"),
            ("Access-Control-Allow-Headers", wanted),
            ("Access-Control-Max-Age", "600"),
        )
    await exchange.reply(200, b"", (("Content-Type", "text/plain"), *allowed))
