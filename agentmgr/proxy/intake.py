"""One client, from its first byte to its last."""

from __future__ import annotations

import secrets
from contextlib import closing
from functools import partial

import trio
from attrs import frozen

from ..core.request import ClientRequest
from .access import Authenticator, Quotas, authenticate, check_origin
from .certificate import Certificate
from .forwarded import Networks, backend_fields, client_address
from .handshake import read_head, refuse, switch_protocols
from .head import RequestHead, ResponseHead
from .limits import GatewayLimits
from .lobby import Lobby, Visit
from .refusal import ClientGone, Refusal
from .session import Pacer, run_session
from .sessions import Session, Sessions
from .tunnel import Ending, Relay, Tunnel
from .upstream import BackendRefused, DialFailed, gateway_fault, open_backend, upgrade_request
from .wire import Wire


@frozen
class Intake:
    """Everything that a client passes on its way to an instance."""

    limits: GatewayLimits
    lobby: Lobby
    sessions: Sessions
    quotas: Quotas
    pacer: Pacer
    relay: Relay
    trusted: Networks
    allowed_origins: frozenset[str] | None
    authenticator: Authenticator | None
    certificate: Certificate | None

    async def serve(self, wire: Wire, peer: tuple[str, int]) -> None:
        """Serves one client; returns when its session is over, or when it has been refused one."""
        try:
            try:
                with trio.fail_after(self.limits.head_timeout_s):
                    if self.certificate is not None:
                        await _start_tls(wire, self.certificate)
                    head = await read_head(wire, self.limits)
            except trio.TooSlowError:
                raise Refusal(408, "request_timeout", "the request's head took too long") from None
            client_ip = client_address(peer[0], head, self.trusted)
            with self.quotas.place(client_ip, trio.current_time()):
                await self._admit(wire, peer, client_ip, head)
        except (Refusal, BackendRefused) as refusal:
            with trio.move_on_after(self.limits.close_timeout_s):
                await refuse(wire, refusal.response)
        except ClientGone:
            pass

    async def _admit(self, wire: Wire, peer: tuple[str, int], client_ip: str, head: RequestHead) -> None:
        check_origin(head, self.allowed_origins)
        identity = None
        if self.authenticator is not None:
            identity, head = await authenticate(head, self.authenticator)
        request = ClientRequest(head.target, client_ip, peer[1], head.by_name)
        connection_id = f"con_{secrets.token_hex(8)}"
        fields = backend_fields(
            head,
            peer=peer[0],
            trusted=self.trusted,
            secure=wire.secure,
            request_id=connection_id,
            identity=identity.name if identity else None,
        )
        asked = upgrade_request(request.address[1], fields)
        visit = Visit(
            request,
            identity.services if identity else None,
            left=partial(wire.wait_gone, self.limits.early_bytes),
        )
        failure = DialFailed("nobody was tried", retry=True)
        deadline = trio.current_time() + self.limits.queue_timeout_s + self.limits.dial_timeout_s
        for _ in range(self.limits.max_tries):
            async with self.lobby.seat(visit) as seat:
                if seat is None:
                    break
                try:
                    backend, answer = await open_backend(
                        seat.backend, asked, head, self.limits, deadline=deadline
                    )
                except DialFailed as fault:
                    failure = fault
                    self.lobby.failed(visit, seat)
                    if fault.retry:
                        continue
                    break
                with closing(backend):
                    self.lobby.opened(visit, seat)
                    session = Session(
                        connection_id,
                        request=request,
                        backend=seat.backend,
                        rule=seat.pool.rule,
                        tunnel=Tunnel(
                            wire,
                            backend,
                            max_message_bytes=seat.backend.max_message_bytes,
                            now=trio.current_time(),
                        ),
                    )
                    return await self._converse(session, head, answer)
        raise gateway_fault(failure)

    async def _converse(self, session: Session, head: RequestHead, answer: ResponseHead) -> None:
        with self.sessions.open(session):
            try:
                # Shielded: whoever has its 101 has a session, and is told of its end.
                with trio.fail_after(self.limits.close_timeout_s, shield=True):
                    await switch_protocols(session.tunnel.from_client.source, head, answer)
            except (ClientGone, trio.TooSlowError) as gone:
                session.ending = Ending("client", None, str(gone), abrupt=True)
                return
            await run_session(session, self.relay, self.pacer, self.limits, loss_code=self.lobby.loss_code)


async def _start_tls(wire: Wire, certificate: Certificate) -> None:
    try:
        await wire.start_tls(certificate.context())
    except OSError as error:
        raise ClientGone(f"no TLS: {error}") from None
