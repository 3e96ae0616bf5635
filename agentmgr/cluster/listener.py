"""Where other machines reach the manager: a TLS listener, which lets in by certificate.

What a connection is for, its client says by ALPN:

    agentmgr-node/1     the daemon of a node
    agentmgr-worker/1   a gateway worker on a node
    agentmgr-drain/1    a node that is to be drained, as its machine will go
    agentmgr-join/1     a machine that wants to join, without a certificate; or a node, to renew its own

A certificate has to be of this cluster's CA, not expired, and of a node that was not forgotten. Whoever is
refused is named in the log once a minute.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio
from attrs import evolve

from ..core.admission import RateLimit
from ..core.repeats import Repeats
from ..credentials import MANAGER, Credentials, Member, explain, peer
from ..errors import CannotReachManager, CannotUseCluster
from ..node.joining import JOIN_PROTOCOL, Greeting, JoinAnswer, JoinRequest, receive, send
from ..node.protocol import Unwelcome, encode
from ..version import __version__
from .accepting import accept_forever
from .joining import FORGOTTEN, Joining
from .newcomers import Newcomers

logger = logging.getLogger(__name__)

HANDSHAKE_S = 20.0  #: as long as the most patient peer waits: where this process is slow, it is not to blame
_NEWCOMERS = 500  #: at once: connections of which it is not known yet whose they are
_JOINS_PER_S = 20.0  #: answered for one address; further ones get the answer to ask again
_FAREWELL_S = 2.0  #: for a peer to read why it was refused

Serve = Callable[[trio.abc.Stream, str], Awaitable[None]]


class ClusterListener:
    def __init__(
        self, credentials: Credentials, joining: Joining, ca: bytes, serving: Mapping[str, Serve]
    ) -> None:
        """`serving`: by ALPN protocol, who serves the connections of nodes; it gets the node's id."""
        self._credentials = credentials
        self._joining = joining
        self._greeting = Greeting(ca.decode(), __version__)
        self._serving = serving
        self._newcomers = Newcomers(_NEWCOMERS)
        self._joins = RateLimit(_JOINS_PER_S)
        self._refusals = Repeats()

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled; closes the listeners."""
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(accept_forever, listener, self._guarded, nursery)
            task_status.started()

    async def _guarded(self, tcp: trio.SocketStream) -> None:
        try:
            try:
                host = str(tcp.socket.getpeername()[0])
            except OSError:  # it has gone
                return
            await self._serve(tcp, host)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it has gone
        except* Exception:  # the boundary: one connection's trouble is not another's
            logger.exception("internal error in the manager while it served another machine")
        finally:
            await trio.aclose_forcefully(tcp)

    async def _serve(self, tcp: trio.SocketStream, host: str) -> None:
        introduced = None
        with self._newcomers.admitted(host) as newcomer:
            introduced = await self._introduced(tcp, host)
        if newcomer.ousted:
            self._log(host, "too many connections were not over, most of them from there: this one made room")
        elif introduced is not None:
            serve, stream, node_id = introduced
            await serve(stream, node_id)

    async def _introduced(
        self, tcp: trio.SocketStream, host: str
    ) -> tuple[Serve, trio.abc.Stream, str] | None:
        """Who serves it as a connection of which node; None: that was all."""
        stream = await self._shake_hands(tcp, host)
        if stream is None:
            return None
        member, protocol = peer(stream), stream.selected_alpn_protocol()
        if protocol == JOIN_PROTOCOL:
            await self._join(stream, member, host)
        elif (serve := self._serving.get(protocol or "")) is None:
            await self._refuse(
                stream, host, "it speaks a protocol that this manager does not know: update agentmgr"
            )
        elif member is None:
            why = "it showed no certificate: a machine joins with `agentmgr node --join`"
            await self._refuse(stream, host, why)
        elif member.node_id == MANAGER or member.node_id not in self._joining:
            await self._refuse(stream, f"{host}, {member}", FORGOTTEN)
        else:
            return serve, stream, member.node_id
        return None

    async def _shake_hands(
        self, tcp: trio.SocketStream, host: str
    ) -> trio.SSLStream[trio.SocketStream] | None:
        try:
            with trio.fail_after(HANDSHAKE_S):
                context = self._credentials.server_context(JOIN_PROTOCOL, *self._serving, strangers=True)
                stream = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)
                await stream.do_handshake()
                return stream
        except trio.TooSlowError:
            self._log(host, "it did not finish the TLS handshake in time")
        except trio.BrokenResourceError as error:
            if (why := explain(error)) is not None:
                self._log(host, why)
        except CannotUseCluster as error:
            logger.error("no machine is let in: %s", error)
        return None

    async def _join(
        self, stream: trio.SSLStream[trio.SocketStream], member: Member | None, host: str
    ) -> None:
        with trio.move_on_after(HANDSHAKE_S):
            await send(stream, self._greeting)
            try:
                ask = await receive(stream, JoinRequest, host)
            except CannotReachManager:  # it wanted to know the CA, or says nothing sensible
                return
            if self._joins.allows(host, trio.current_time()):
                answer = await self._joining.answer(evolve(ask, address=ask.address or host), member)
            else:
                answer = JoinAnswer(refusal="many machines join just now: ask again in a moment", busy=True)
            if answer.refusal and not answer.busy:  # first: it is in the log when the machine hears of it
                self._log(host, answer.refusal)
            await send(stream, answer)
            await _read_until_closed(stream)

    async def _refuse(self, stream: trio.SSLStream[trio.SocketStream], who: str, why: str) -> None:
        """Tells a daemon, which would else see a closed connection."""
        self._log(who, why)
        with trio.move_on_after(_FAREWELL_S):
            await stream.send_all(encode(Unwelcome(why, forgotten=why == FORGOTTEN)))
            await _read_until_closed(stream)

    def _log(self, who: str, why: str) -> None:
        if self._refusals.is_new((who, why), trio.current_time()):
            logger.warning("refused a machine at %s: %s", who, why)


async def _read_until_closed(stream: trio.abc.ReceiveStream) -> None:
    """What is not read when a connection is closed resets it, and takes our last words along."""
    while await stream.receive_some(2**16):
        pass
