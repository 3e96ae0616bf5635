"""What an HTTP upgrade and the WebSocket after it are made of, for whoever takes or makes one.

The gateway is both ends of a handshake, an agent's host is the server's, the supervisor's probe and
`agentmgr.client` are the client's. What they have in common is here, once. In reading order:

    head      reads and judges the head of a request and of its answer; what makes a good upgrade
              (`check_upgrade`) and a good 101 (`check_switch`)
    refusal   the answer to a handshake that gets no 101: `Refusal`, its public codes, its bytes
    frames    follows the frames of one direction without their payloads; writes frame headers, close frames
    sockets   `Wire`, a socket with the few waits that handshakes need; connects, also over TLS; options

`head`, `refusal` and `frames` do no I/O: bytes in, values or bytes out, and an exception for what must not
pass. wsproto and h11 still parse messages where those are read (in the host by trio-websocket, in the probe);
nothing reaches them in the host that `head` has not judged.

Invariants:

* What the judge lets pass, every parser behind it reads in the same way: nothing can be smuggled. Where RFC
  9112 lets a recipient repair, it refuses.
* A head is refused as soon as it cannot become a good one, and never grows beyond its limit.
* A refused handshake has an HTTP status, and `{"code", "reason"}` as its body.
* The tracker needs the same memory for a frame of any size, and never changes a byte.
* No close frame has a code that must not be sent (`frames.SENDABLE`); the codes we send ourselves have names
  in `agentmgr.protocol`.

It must not know instances, sessions, routing, tokens, or who its user is: what a head says of its client is
for its reader to believe or not (`proxy.forwarded`, `agent.door`).
"""
