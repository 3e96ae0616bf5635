"""The headers by which a gateway says to a hosted agent who its client is, and the cookie that it keeps.

An agent believes them only with the gateway's proof (`core.proof`); from a client they are removed.
"""

from __future__ import annotations

import re

IDENTITY_HEADER = "X-Agentmgr-Identity"
"""The name of the client's token; from the gateway, and only with its proof."""

CONNECTION_HEADER = "X-Agentmgr-Connection"
"""The gateway's id of the client's connection. (`X-Request-Id` may be what a trusted proxy sent.)"""

RESUME_HEADER = "X-Agentmgr-Resume"
"""From the gateway: `CONNECTION_ID` asks that the connection can be resumed if the instance ends under it.
`CONNECTION_ID; delivered=N; offset=K` resumes it: the client has N whole frames, and K bytes of the next."""

RESUMED_HEADER = "X-Agentmgr-Resumed"
"""The host's answer, `taken=M; pings=P`: so many of the client's messages were taken in, so many of its pings
answered. What follows is frame N + 1, whole. Without this header the connection cannot be resumed."""

HOST_HEADER = "X-Agentmgr-Host"
"""From the host in each 101 behind which it speaks the events of `protocol`; the value is `events`. By it a
front knows a host that is silent, because it is busy or is being started, from a service without sessions."""

LOGIN_COOKIE = "agentmgr_console"
"""How the names of the cookies begin that hold a key of this manager. Browsers send the cookies of a host to
each of its ports, so to the gateway's too: an agent neither gets nor sets one."""

_FORWARDED = frozenset(
    {"forwarded", "x-forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host",
     "x-forwarded-port", "x-real-ip", "x-request-id"}
)  # fmt: skip
_NO_LETTER = re.compile(r"[^a-z0-9]")


def from_gateway(name: str) -> bool:
    """Whether only a gateway may send a header of that name, in whatever spelling an agent may read it."""
    plain = _plain(name)
    return plain in _FORWARDED or plain.startswith(("x-agentmgr-", "x-forwarded-"))


def from_proxy(name: str) -> bool:
    """Whether a gateway passes on what a trusted proxy says in a header of that name, as X-Forwarded-User."""
    plain = _plain(name)
    return plain.startswith("x-forwarded-") and plain not in _FORWARDED


def without_login(cookies: str) -> str:
    """What is left for an agent of a `Cookie` header."""
    if LOGIN_COOKIE not in cookies:
        return cookies
    each = [one.strip() for one in cookies.split(";")]
    return "; ".join(one for one in each if not one.startswith(LOGIN_COOKIE))


def sets_login(name: str, value: str) -> bool:
    """Whether an agent's header would log a browser in to the console, or out."""
    return name.lower() == "set-cookie" and value.startswith(LOGIN_COOKIE)


def _plain(name: str) -> str:
    # CGI and WSGI make a variable's name of it, and some servers write each of -, _ and . as the same there.
    return _NO_LETTER.sub("-", name.lower())
