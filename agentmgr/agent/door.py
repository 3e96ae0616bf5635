"""Who may connect to an agent's own port, and what is believed of what they say.

The gateway proves that it knows the instance's token, and is believed what it says of its client. Another
program is taken directly only where the kernel says that it belongs to the agent's own user or to root, and
where it does not act for a web page of elsewhere: loopback is open to every user of the machine, and to every
page in a browser on it. Of those nothing is believed: they have no identity.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import trio
from attrs import evolve

from ..core.gateway_headers import from_gateway
from ..core.hosts import host_is_loopback, origin_allowed, origins
from ..core.proof import PROOF_HEADER, SenderProofs
from ..process.peer import peer_uid
from ..websocket.head import RequestHead
from ..websocket.refusal import Refusal, RefusalCode


class Door:
    def __init__(
        self, token: str = "", *, allowed_origins: Iterable[str] | None = None, any_machine: bool = False
    ) -> None:
        """`token`: of the instance, known to its gateway; with "" no proof is accepted.

        `allowed_origins`: the pages that may connect; None: those of this machine. With `any_machine` all
        users of all machines may.
        """
        self._proofs = SenderProofs(token)
        self._origins = origins(allowed_origins)
        self._any_machine = any_machine

    def keeps_out(self, sock: trio.socket.SocketType) -> bool:
        """Whether it is another user's for certain: of those only a gateway with the token is let in."""
        return not self._any_machine and peer_uid(sock) not in (os.geteuid(), 0, None)

    def admit(self, request: RequestHead, sock: trio.socket.SocketType, subject: str) -> bool:
        """Whether it comes from the gateway, or from another that has the token; else it is a direct client.

        `subject`: what a proof must be made over. Raises `Refusal`.
        """
        if shown := request.by_name.get(PROOF_HEADER.lower()):
            if not self._proofs.accepts(shown, subject, now=time.monotonic()):
                # As when the instance was restarted while the gateway dialled: it dials again.
                reason = "this proof is for another instance, or was used before"
                raise Refusal(421, RefusalCode.WRONG_PROOF, reason)
            return True
        origin = request.by_name.get("origin", "")
        if not origin_allowed(origin, self._origins):
            reason = f"pages of {origin} are not among the allowed origins"
            raise Refusal(403, RefusalCode.ORIGIN_NOT_ALLOWED, reason)
        if self._any_machine:
            return False
        if not host_is_loopback(host := request.by_name["host"]):
            reason = f"Host {host!r} is not this machine: use localhost"
            raise Refusal(403, RefusalCode.HOST_NOT_ALLOWED, reason)
        if peer_uid(sock) not in (os.geteuid(), 0):
            reason = "only the user who runs this agent may connect to its own port: use the gateway"
            raise Refusal(403, RefusalCode.USER_NOT_ALLOWED, reason)
        return False


def believed(request: RequestHead, *, gateway: bool) -> RequestHead:
    """The head for the agent: never the proof, and what only a gateway may say if that said it."""

    def may_pass(name: str) -> bool:
        return name.lower() != PROOF_HEADER.lower() and (gateway or not from_gateway(name))

    return evolve(
        request,
        fields=tuple(item for item in request.fields if may_pass(item[0])),
        by_name={name: text for name, text in request.by_name.items() if may_pass(name)},
    )
