"""How a hosted agent and its manager prove to each other that they know the instance's token.

* The agent answers a challenge: `proof`. Whoever asks it so learns that no other process has taken its port.
* Who connects to the agent, a gateway or a probe, sends `PROOF_HEADER`: a nonce and a MAC over that nonce and
  what it asks for, the `Sec-WebSocket-Key` of its handshake or the target of its probe. It is good for that
  one handshake; what else the head says of the client is believed only with it.

Challenges are hexadecimal. So no challenge is ever a text that the header's MAC is made over, and no client
can make the agent compute that MAC. Not in `core.health`, which would cost each agent's process the import of
the models.
"""

from __future__ import annotations

import hmac
import re
from collections import OrderedDict

HEALTH_PATH = "/.well-known/agentmgr/health"
"""Where a hosted agent answers `?challenge=HEX`, to a WebSocket and to plain GET (prefix: RFC 8615)."""

DRAIN_PATH = "/.well-known/agentmgr/drain"
"""Where a manager asks a hosted agent to end its conversations, with `code`, and how many are left."""

PROOF_HEADER = "X-Agentmgr-Proof"

PROOF_AGE_S = 60.0
"""For so long a proof is good, once. A gateway waits for the answer to its handshake 10 s by default."""

_CHALLENGE = re.compile(r"[0-9a-fA-F]{1,128}")


def proof(token: str, challenge: str) -> str:
    """The answer to a challenge, which only a holder of the instance's token can compute."""
    return hmac.new(token.encode(), challenge.encode(), "sha256").hexdigest()


def is_challenge(text: str) -> bool:
    return _CHALLENGE.fullmatch(text) is not None


def sender_proof(token: str, subject: str, *, now: float, salt: str) -> str:
    """The value of `PROOF_HEADER`. `now`: seconds of the machine's monotonic clock; `salt`: random."""
    nonce = f"{now:.3f}-{salt}"
    return f"{nonce} {proof(token, f'{nonce} {subject}')}"


class SenderProofs:
    """Judges the proofs that come to one instance. A nonce is remembered for as long as it would be good."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._seen: OrderedDict[str, float] = OrderedDict()  # when it was made, by nonce, as they came

    def accepts(self, header: str, subject: str, *, now: float) -> bool:
        nonce, _, mac = header.partition(" ")
        expected = proof(self._token, f"{nonce} {subject}")
        if not self._token or not hmac.compare_digest(mac.encode(), expected.encode()):
            return False
        made_at = float(nonce.partition("-")[0])  # whoever has the token made it, by `sender_proof`
        if abs(now - made_at) > PROOF_AGE_S or nonce in self._seen:
            return False
        self._forget(now)
        self._seen[nonce] = made_at
        return True

    def _forget(self, now: float) -> None:
        while self._seen and now - self._seen[next(iter(self._seen))] > PROOF_AGE_S:
            self._seen.popitem(last=False)
