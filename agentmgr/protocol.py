"""The wire protocol between an agent's host and its clients: what is said, in which order, and its limits.

The names and codes below are the ones that the host (`agentmgr.agent`), `agentmgr.client`,
`agentmgr.testing` and the tests use. The gateway passes frames on and reads none of them.

A WebSocket carries it, with or without a gateway between. The client's first frame decides the mode of the
connection: a text that begins with `{` speaks events, any other one speaks plain text (last section).

Envelope
--------

An event is a JSON object in one text frame. Unknown fields are ignored. A client sends:

    event       its name; `{"type": "ping"}` is taken for `{"event": "ping"}`
    session_id  string; without it, the session that this connection named or made last
    step_id     string; on a `user.message` the client's own id of the turn, on others what they refer to
    content     any JSON
    metadata    object

`seq`, `last_seq` and `last_event_id`, and the ids that `user.response`, `user.reconnect` and
`user.request_state` need, may also be inside `content`. The agent sends the five above, and:

    connection_id  `con_…`, the gateway's id, which `agentmgr disconnect` takes; `lnk_…` without a gateway
    timestamp      UTC, ISO 8601 in milliseconds, `2026-01-31T12:00:00.000Z`
    seq            the event's number in its session: 1, 2, 3 … without holes
    event_id       `evt_…-SEQ`; a client may send it as `last_event_id` in place of `seq` or `last_seq`

Only the events of a session have `seq` and `event_id`. What answers a connection (`system.*`, `pong`,
`agent.state_*`) has neither, is not repeated after a reconnect, and may overtake events of a session.

From the client
---------------

    user.create_session        makes a session: `agent.session_created`. `content.name` (256 characters) is
                               unique among the sessions of its owner: creating it again takes it up, as
                               `user.reconnect` does. `content.history`, entries as `agent.state_exported`
                               shows them, is what a new one begins with. With `content.transient` true it is
                               in memory only, and ends when no connection reads it and no turn runs
    user.end_session           `session_id`: ends the session, and the turn that runs: `agent.session_end`
    user.message               a turn. `content` is a text, or an object whose `text`, `message`, `content`
                               or `question` is the text. `metadata.instructions`, a text, says how to answer,
                               `metadata.attachments` is a list of {kind: image or file, url, name}. Without
                               any session one is made. A `step_id` that is one of the session's last 256 is
                               refused as `duplicate`, so that it is safe to send a message again after a
                               cut. While a turn runs the message waits, or by the service's `when_busy` is
                               refused (`busy`) or interrupts that turn; with `queue` false it never waits:
                               it is refused, or the notice `taken` {after_seq} with its `step_id` says that
                               the events of its turn are behind that one. `metadata.confirm_timeout`: seconds
                               that the turn's questions wait, where neither the agent's code nor its service
                               says how long
    user.response              answers an `agent.user_confirm`: its `step_id`, and `content.confirmed` (or
                               `content.approved`, or `content` itself) true or false. The first answer
                               counts; later ones get `unknown_step`. `content.answer_id` comes back in the
                               notice `answered`
    user.cancel                ends the running turn at once with `agent.interrupted`; with a `step_id`, only
                               if it is that turn. If none runs: notice `nothing_running`
    user.ack                   `seq`: everything up to it was received and need not be kept
    user.reconnect             `session_id`, or the `name` of one that is there, and `last_seq`: takes the
                               session up after event `last_seq` (default 0). Other connections go on reading
                               it, unless `exclusive` is true: then they lose it, with the notice `taken_over`
    user.watch                 the same; a message that names no session goes where it went before
    user.reconnect_with_state  the same, and first `agent.state_restored`
    user.request_state         `agent.state_exported`; requests within 0.1 s get one answer
    ping                       `pong` with the same `content`

An unknown `user.…` gets the error `unknown_event`; other unknown events are ignored.

From the agent
--------------

    system.connected       {connection_id}, at the client's first event, or when it has sent nothing for 1 s
    system.heartbeat       every 30 s after the client's first frame; not to one that has been silent for 30
                           min and for which no turn runs
    system.notice          {code, message, …}, see `NoticeCode`
    system.error           {code, message, …}, see `ErrorCode`; `session_id` and `step_id` are those of the
                           frame that it answers. The connection goes on
    pong                   the `content` of the ping

    agent.session_created  {session_id}; it is event 1 of each session
    agent.session_end      {reason}, see `EndReason`; it is the last event of each session
    agent.state_exported   {state, history, last_seq, busy, turn}. `turn`: {step_id, content} of the message
                           that is being answered. `history`: {role: user or assistant, content}, with
                           `incomplete: true` for an answer that was broken off, `truncated: true` for one of
                           over 1 MiB; at most 1000 entries and 1 MiB. `truncated`: how many older entries
                           were dropped. `state_left_out`: why `state` is empty (over 1 MiB, or JSON cannot
                           say it)
    agent.state_restored   the same

    agent.thinking         text, for a person to see
    agent.tool_call        {tool, args}
    agent.tool_result      {tool, result, success}, with the `step_id` of its call
    agent.partial_answer   text; joined in order, these are the answer. None is dropped or merged
    agent.user_confirm     {tool, args, message, timeout_s}: a question; its `step_id` is for the response.
                           No answer within `timeout_s` means no. It stays open over a reconnect, and is
                           closed when its instance ends. The notice `answered` {confirmed, message,
                           answer_id} with its `step_id`, an event of the session, says that it was answered
                           or timed out
    agent.usage            {input_tokens, output_tokens, model}: what a turn has used, to be added up

    agent.final_answer     any JSON: the whole answer, also when it was streamed; of a stream of over 8 MiB
                           its beginning, with `metadata.truncated`
    agent.error            {error_id, type, message}: the agent's code failed; its log has the error_id. Or
                           {code, message}, see `TurnCode`
    agent.timeout          {timeout_s}: the turn took longer than `turn_timeout`
    agent.interrupted      {reason}: cancelled, interrupted by a newer message, or its client went away; with
                           `code` where the service was stopped, see `TurnCode`

An agent may send events of other names too, which arrive as it made them.

Order
-----

* Turns of a session run one after another, in the order of their messages. Each ends with exactly one of
  `TURN_ENDS`, which has the `step_id` of the message (`turn_…` where that had none). Nothing of the turn
  comes after it. The session goes on, whatever the end was.
* Several sessions of one connection run at the same time; their events mix.
* A session outlives its connection, and if it is durable its process; see "Sessions". Any number of
  connections may read it, each at its own place, and all may speak. A `user.message` that names a session
  which its connection does not read takes it up too, from its newest event on.
* After `user.reconnect` come, in this order: `agent.state_restored` if it was asked for; the notice
  `resumed` {replay_from, last_seq, busy}; the events after `last_seq`; and then what is new.
* Of a durable session all events are kept. Of each other one the host keeps the last 4096 events or the
  last MiB, whichever is less, and less after an ack. When events are gone that a client has not received,
  the notice `gap` {missing_from, missing_to} stands in their place; after a `user.reconnect` it is the notice
  `resumed` with these two fields and the code `gap`.
* An agent waits while all connected clients are so far behind that they would miss events: 5 s for their
  acks, then 30 s for one to read. After that there is a gap, or of a durable session none. A client that
  takes in no byte for 30 s is disconnected.
* A turn that ran when its instance died ends with `agent.error`, code `instance_lost`; or, where the service
  says `on_crash=retry`, the notice `turn_restarted` (of the session: it has a `seq`) says that it runs again
  from its message: what was streamed before does not count. Messages that waited are answered in their order.

Sessions
--------

A session belongs to the identity that made it; for every other one it does not exist. An anonymous session
belongs to whoever knows its id, which has 128 random bits, or the name it was given: `ses_…`, and behind a
dot the id of the instance that made it. A client that reconnects names the session in its handshake too, so
that a gateway can find that instance: `X-Session-Id`, `session_id` in the query, or a cookie of this name.

The sessions of a service are durable, or in memory only (`sessions`). A durable one is in the service's
journal, with each message and event, before a client is sent any of it. So it outlives its instance: a client
that comes back gets every event once, whichever instance holds the session by then. Without a connection and
a turn it leaves memory after `session_idle`; no event says so, and its next message brings it back. It ends
by `user.end_session` alone. One that is in memory only ends with its instance, and when it was without a
connection for `session_timeout`.

One instance holds a session at a time. Another one answers `session_elsewhere` {instance}; if the handshake
named the session, it refuses that with 421 and the same code and field, and a gateway dials the holder. One
that drains does so with an empty `instance` for a session that it has given up: any other may take it up. In
a cluster so does one on another machine than the session's, until the handshake names it: only a gateway
knows whether that machine is lost, which is `session_not_found` then.

Limits
------

    a message                      `max_message_bytes` of the service, else `too_large`; over four times as
                                   much ends the connection with 1009
    nesting of JSON                64 in what a client sends, else `too_deep`; 256 in what the agent sends
    session_id, step_id            256 characters
    messages that wait             16, and 2 MiB where text counts twice, in each session, else `queue_full`
    what a host keeps for all      256 MiB. Over that it forgets the histories and replays of the clients that
                                   are away, the longest first; then the replays that connected clients have
                                   received; then it ends waiting messages of clients that are away, with
                                   `agent.interrupted`; then it refuses messages and sessions: `host_full`
    sessions of a connection       64, else `max_sessions`; the same code where the host has no room for
                                   another
    answers that are not read      64 KiB; then the host reads no more from that client until it reads them

JSON has no NaN, no infinity, no half of a surrogate pair: `invalid_json`.

Ends of a connection
--------------------

    1000  the client closed                   1009  a frame was too large by far
    1001  the service is stopped              1011  the agent's own `serve(websocket)` failed
    1002, 1007  the client broke RFC 6455     1012  the agent restarts, or another instance has taken over
                                                    a session of this connection: connect again

The gateway ends a connection with some of these too, with 1008 when an operator ends it or its token is no
longer valid, and with 1013 when the client or the agent does not read.

Through the gateway, a connection to an agent with durable sessions goes on when its instance ends or restarts
(`seamless`): no close frame comes, and no byte is missing. A turn that was running ends or runs again, as
above. Where no instance can go on with it within `resume_within`, the connection ends with 1012.

A host that is asked to drain closes each connection with 1001 or 1012 when no turn runs on it and nothing
came from the client for 0.2 s (2 s, before its first frame), or between two turns once it drains for 2 s. A
connection that is made more than 2 s after the drain began can take up a session, and gets the error
`draining` when it asks for a new one. One that another instance goes on with is led there at once.

The 101 of a host of ours has `X-Agentmgr-Host: events`; one in another language may say so too. By it a front
waits for a host that is silent, instead of taking it for a service without sessions.

A handshake that the host itself refuses gets an HTTP status and `{"code", "reason"}`: 400 `bad_request`, 403
`origin_not_allowed`, `host_not_allowed` or `user_not_allowed`, 421 `wrong_proof` (the gateway dials again) or
`session_elsewhere`, 426 `upgrade_required` or `unsupported_version`, 431 `head_too_large`. The gateway's own
refusals: `agentmgr explain`.

Plain text
----------

Each text frame of the client is a message, or the answer to an open question: yes or no, in a few languages.
The agent sends one frame for each end of a turn (the answer, as JSON if it is not a text; `[error] …`;
`[interrupted]`), for a question (`… [yes/no]`), for a `system.error` (`[error] …`) and for the session's
end. It streams nothing. A client that sent nothing for 1 s has got `system.connected` and may still speak
plain.
"""

from __future__ import annotations

from enum import StrEnum

SESSION_HEADER = "X-Session-Id"  #: of a handshake: the session that the client will take up
BEARER = "bearer."  #: begins a subprotocol that is a token: browsers cannot set the Authorization header

# From the client.
CREATE_SESSION = "user.create_session"
END_SESSION = "user.end_session"
MESSAGE = "user.message"
RESPONSE = "user.response"
CANCEL = "user.cancel"
ACK = "user.ack"
RECONNECT = "user.reconnect"
RECONNECT_WITH_STATE = "user.reconnect_with_state"
WATCH = "user.watch"
REQUEST_STATE = "user.request_state"
PING = "ping"

# From the agent, of a connection.
CONNECTED = "system.connected"
HEARTBEAT = "system.heartbeat"
NOTICE = "system.notice"
ERROR = "system.error"
PONG = "pong"
STATE_EXPORTED = "agent.state_exported"
STATE_RESTORED = "agent.state_restored"

# From the agent, of a session.
SESSION_CREATED = "agent.session_created"
SESSION_END = "agent.session_end"
THINKING = "agent.thinking"
TOOL_CALL = "agent.tool_call"
TOOL_RESULT = "agent.tool_result"
PARTIAL_ANSWER = "agent.partial_answer"
USER_CONFIRM = "agent.user_confirm"
USAGE = "agent.usage"
FINAL_ANSWER = "agent.final_answer"
AGENT_ERROR = "agent.error"
TIMEOUT = "agent.timeout"
INTERRUPTED = "agent.interrupted"

TURN_ENDS = frozenset({FINAL_ANSWER, AGENT_ERROR, TIMEOUT, INTERRUPTED})
"""Each turn ends with exactly one of these."""


class ErrorCode(StrEnum):
    """`content.code` of a `system.error`."""

    NOT_UTF8 = "not_utf8"
    TOO_LARGE = "too_large"
    INVALID_JSON = "invalid_json"
    TOO_DEEP = "too_deep"
    INVALID_EVENT = "invalid_event"  #: not an object, or without the name of an event
    INVALID_FIELD = "invalid_field"  #: a field is missing, or of the wrong type or length
    UNKNOWN_EVENT = "unknown_event"
    SESSION_NOT_FOUND = "session_not_found"  #: `content.reason` is a `LossReason`
    SESSION_ELSEWHERE = "session_elsewhere"  #: the instance `content.instance` holds it
    SESSION_UNREACHABLE = "session_unreachable"  #: it cannot be read just now: connect or send it again later
    MAX_SESSIONS = "max_sessions"
    HOST_FULL = "host_full"  #: the host has no bytes left for this; send it again later
    DRAINING = "draining"  #: the host ends soon and begins no session: connect again
    BUSY = "busy"
    QUEUE_FULL = "queue_full"
    DUPLICATE = "duplicate"  #: a message with this step_id was taken before
    UNKNOWN_STEP = "unknown_step"  #: no question with this step_id is open


class NoticeCode(StrEnum):
    """`content.code` of a `system.notice`."""

    RESUMED = "resumed"
    GAP = "gap"
    TAKEN_OVER = "taken_over"
    NOTHING_RUNNING = "nothing_running"
    TURN_RESTARTED = "turn_restarted"
    ANSWERED = "answered"  #: a question was: `content.confirmed`
    TAKEN = "taken"  #: a message with `queue` false was: its turn is next, behind event `content.after_seq`


class LossReason(StrEnum):
    """Why a session that a client names is not there."""

    ENDED = "ended"
    EXPIRED = "expired"  #: it was without a connection for longer than `session_timeout`
    INSTANCE_LOST = "instance_lost"  #: it was in memory only, and its instance has ended or was restarted
    NODE_LOST = "node_lost"  #: in a cluster: its machine is lost, and its journal with it
    UNKNOWN = "unknown"  #: there is none of that id, or it belongs to another identity


class EndReason(StrEnum):
    """`content.reason` of an `agent.session_end`."""

    TIMEOUT = "timeout"  #: without a connection for longer than `session_timeout`
    ENDED = "ended"  #: by `user.end_session`
    RESTART = "restart"  #: the host ends, and the session was in memory only
    REPLACED = "replaced"  #: the oldest without a connection and a turn made room for a new session
    FAILED = "failed"  #: the agent's `on_session_start` raised, and an `agent.error` said so


class TurnCode(StrEnum):
    """`content.code` of an `agent.error` or `agent.interrupted` that the agent's code did not cause."""

    INSTANCE_LOST = "instance_lost"  #: the instance died in the turn; what was streamed may not be all
    STATE_TOO_LARGE = "state_too_large"  #: over `state_max_bytes`: the state is as before the turn
    SERVICE_STOPPED = "service_stopped"  #: a planned stop or restart did not wait longer for the turn


# Close codes (RFC 6455, section 7.4, and IANA's registry).
NORMAL = 1000
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
NO_CODE = 1005  #: never sent: what a close frame without a code is taken to say
BAD_TEXT = 1007
POLICY = 1008
TOO_BIG = 1009
FAILED = 1011
COME_BACK = 1012
TOO_SLOW = 1013
