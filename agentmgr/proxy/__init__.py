"""The WebSocket gateway: one address for all clients, and a relay from each client to its instance.

It is given a routing table (`core.routing`) and serves clients by it until it is cancelled. Parts, in the
order in which a client meets them:

- `gateway`: the public class; takes tables, drains and disconnects, starts the accept loops
- `listener`: accepts; at most `ConnectionLimit` connections at once
- `intake`: the course of one client, from its first byte to its 101 or its refusal. What other protocols ask
  goes from there to the fronts that were handed in, which let in clients of their own
- `certificate`, `proxy_protocol`, `handshake`, `forwarded`: what a client sends first; its address
- `access`, `token_scopes`: tokens, tickets, origins, quotas; what is ended when a token is
- `visit`, `lobby`: chooses an instance, takes a seat there, or waits for one
- `upstream`, `proving`: the handshake with the instance; proof that it is the instance and no other program.
  `dialer` connects to it: over loopback, or by `gate_dialer` through the `gate` of its node (`gate_protocol`)
- `connections`, `lifetime`: the live connections; relays one, watches its limits, ends it
- `tunnel`, `farewell`: the relay loop; close frames at its end
- `guests`: clients of another WebSocket server, which hands them over (`Gateway.relay`)
- `resuming`, `tail`: another instance goes on with a connection that has lost its own

Heads, refusals, frames and sockets as such are `agentmgr.websocket`.

Words:

- connection: one client's WebSocket through the gateway, with an id `con_…`. The gateway knows nothing of the
  sessions (conversations) inside, except the id by which a client asks to come back to its instance.
- tunnel: the two flows of bytes of one connection
- seat: the right to one connection at an instance, counted against `max_sessions`
- to resume: to have another instance go on with a connection, whose client notices nothing
- home: the instance that holds the session which a client names
- gate: where the gateway of a node lets gateways of other nodes reach its instances
- slice: how long the relay serves sockets before other tasks run
- refusal: the HTTP answer of a client that gets no 101 (`websocket.refusal`)
- ending: why a connection is over, who ended it, and the close code

Invariants:

- A seat is taken in the same step in which it is chosen, so `max_sessions` is never exceeded.
- Each connection that was opened is closed once, and `ConnectionObserver` is called once for each.
- Bytes are passed on unchanged and in order. The gateway adds a close frame only between two frames.
- A connection that is resumed has no seat while it waits for one. Its client gets the bytes that it would
  have got, and an instance is sent each of its messages until one has taken it in.
- A client that the gateway cuts off gets a close frame, if its socket takes one within a time limit.
- An error in one connection ends that connection only.

It must not know the supervisor, the store, the manager or processes: the table says where instances are, and
the observer is called with what happened.
"""

from .access import Authenticator, Identity
from .certificate import Certificate
from .connections import ConnectionObserver
from .gateway import Gateway
from .limits import GatewayLimits

__all__ = ["Authenticator", "Certificate", "ConnectionObserver", "Gateway", "GatewayLimits", "Identity"]
