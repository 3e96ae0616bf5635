"""Fronts: the gateway's port speaks the protocols that chat programs, SDKs and editors have already.

A front translates between one such protocol and ours. Parts, in reading order:

- `exchange`: one request and its answer, as a front sees them: h11 on the wire that the gateway hands over,
  bodies, streams of events with comments that keep them alive
- `http`: requests one after another: who may ask and what, clients that leave, problems. The two are the one
  shell that does I/O with clients, and know no protocol of a front
- `bounds`: what all requests together may take of memory and of the loop
- `door`, `feed`: an ordinary client of this gateway, for which a front speaks, and its socket
- `prompt`, `history`: what a request says, and whether what was said before is what a session knows
- `session`: what is asked of the agent's host about a session: to make or find it, its state, its past
- `turn`: says a message or answers a question, and gives the events that follow
- `place`, `keyed`, `cache`: which instance and session it is said in; what is remembered between requests
- `models`: the services by the names that clients have for them
- `openai`: OpenAI's routes; `openai_chat`: their translator
- `responses`: those of its Responses API; `response_id`: where a response is found again; `playback`: how it
  is read again; `openai_input`, `openai_responses`: their translators; `responses_socket`: over a WebSocket
- `agui`: AG-UI's route; `copilotkit`: those of CopilotKit's runtime; `agui_runs`: the runs of both,
  `agui_turns`: where in a session they begin; `agui_input`, `agui_events`: their translators
- `http_services`: requests to services that speak HTTP themselves, passed on as they are
- `problem`: what goes wrong with a request, before it is said in the front's own shape; checks of its fields

Words:

- front: one protocol, by its name in the setting `fronts`, with the prefixes of its paths
- exchange: one request and its answer
- key: what a client calls its conversation; a session of that name lasts, and has branches (NAME~2) where
  the client has changed its history
- door: one connection to an instance, made by the gateway for a request

Invariants:

- All that holds for a WebSocket client (tokens, origins, quotas, rules, seats, queueing, affinity, limits,
  statistics) holds for a request, because its conversation is one. There is no second path to an agent.
- Translators do no I/O and know no clock and no randomness: ids and times are given to them.
- A client that leaves ends its exchange at once, and so its door. What becomes of the turn is the service's
  `on_disconnect`.
- A client hears of every end: an answer that cannot be given, or a stream that cannot go on, also because
  the gateway ends, is a `Problem`, which the front words and the shell sends.
- Nothing that is remembered between two requests is needed: another gateway finds it out from the host.
- This module is all that a gateway imports until the first request for a front comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.request import ClientRequest

if TYPE_CHECKING:
    from ..core.routing import Router
    from ..proxy.forwarded import Peer
    from ..proxy.intake import Intake
    from ..websocket.head import RequestHead
    from ..websocket.sockets import Wire
    from .bounds import Memory
    from .exchange import Front

PREFIXES = {"openai": ("/v1/",), "agui": ("/agui/", "/copilotkit"), "http": ("/services/",)}
"""The fronts that there are, and with what their paths begin."""

SOCKETS = frozenset({"/v1/responses"})
"""Those of their paths that speak WebSocket too."""


class Fronts:
    """Those that a gateway has (`proxy.intake.Fronts`). Each is imported and made when it is used."""

    def __init__(self, names: str) -> None:
        """`names`: as the setting has them: with commas between, or `none`."""
        self._prefixes = {name: PREFIXES[name] for name in names.split(",") if name != "none"}
        self._made: dict[str, Front] = {}
        self.memory: Memory | None = None  #: that of all requests, since the first one

    @property
    def paths(self) -> str:
        """With what the paths of their requests begin, for people."""
        found = (prefix for prefixes in self._prefixes.values() for prefix in prefixes)
        return ", ".join(f"{prefix}NAME/" if prefix == "/services/" else prefix for prefix in found)

    def take(self, head: RequestHead, router: Router) -> bool:
        name = self._name(head, router)
        return name is not None and (not head.wants_websocket or head.path in SOCKETS)

    async def serve(self, intake: Intake, wire: Wire, head: RequestHead, peer: Peer) -> None:
        from .bounds import Memory
        from .http import serve

        if self.memory is None:
            self.memory = Memory(intake.limits.requests_bytes, intake.limits.early_bytes)
        if not head.wants_websocket:

            def front_of(head: RequestHead) -> Front | None:
                return self._front(head, intake.lobby.router)

            await serve(intake, wire, head, peer, front_of, self.memory, self.paths)
            return
        from . import responses_socket
        from .openai import OpenAI

        front = self._front(head, intake.lobby.router)
        assert isinstance(front, OpenAI)
        await responses_socket.serve(intake, wire, head, peer, front.responses, self.memory)

    def _name(self, head: RequestHead, router: Router) -> str | None:
        path = head.target
        name = next((name for name, prefixes in self._prefixes.items() if path.startswith(prefixes)), None)
        if name == "http":
            service, _ = ClientRequest(path).address
            # One that there is not gets this front's 404.
            if service is None or (router.knows(service) and service not in router.table.http_services):
                return None
        return name

    def _front(self, head: RequestHead, router: Router) -> Front | None:
        """The one that a request is for; None where it is for none."""
        name = self._name(head, router)
        if name is not None and name not in self._made:
            self._made[name] = _make(name)
        return None if name is None else self._made[name]


def _make(name: str) -> Front:
    match name:
        case "openai":
            from .openai import OpenAI

            return OpenAI()
        case "agui":
            from .agui import AGUI

            return AGUI()
        case "http":
            from .http_services import HttpServices

            return HttpServices()
    raise KeyError(name)
