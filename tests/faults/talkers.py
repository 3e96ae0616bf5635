"""Clients that converse with a durable agent whatever happens to it, and check what must hold.

Each event of a session arrives once, in order, without a hole; each message is answered once; the state and
the history are those that the events tell of. `Talker.faults` has each breach, with the events around it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import trio
from attrs import define
from trio_websocket import ConnectionClosed, WebSocketConnection

from agentmgr.agent.limits import MAX_HISTORY
from agentmgr.client.transport import CannotConnect, with_connection
from agentmgr.protocol import TURN_ENDS

AGENT = """
import hashlib, json, trio

async def agent(message, session):
    said, count, pause = message.split()
    history = hashlib.sha256(json.dumps(session.history, sort_keys=True).encode()).hexdigest()
    for number in range(int(count)):
        await session.emit("agent.partial_answer", f"{said}.{number} ")
        await trio.sleep(float(pause))
    session.state["answers"] = session.state.get("answers", 0) + 1
    return {"said": said, "answers": session.state["answers"], "history": history}

def create_agent():
    return agent
"""
AGAIN_S = 0.05
SILENCE_S = 90.0
"""Nothing for so long, while an answer is due: it is lost."""


class Fault(AssertionError):
    pass


@define
class Kills:
    """What may explain that a turn was lost."""

    so_far: int = 0
    under_way: bool = False  #: a host is suspended, and may be killed at any moment


class Talker:
    """One client and its one session, over as many connections as it takes."""

    def __init__(
        self,
        number: int,
        urls: Sequence[str],
        random: Random,
        count: Counter[str],
        kills: Kills,
        *,
        eager: bool,
        may_lose: Callable[[str], bool] = lambda session_id: False,
    ) -> None:
        """`urls`: of gateways, any of which will do. `eager`: it has always one more message under way.

        `may_lose`: whether the machine of a session is given up, so that its client may be told that it is
        lost; it begins another one then.
        """
        self.number, self._urls, self._random, self._count = number, urls, random, count
        self._kills, self._eager, self._may_lose = kills, eager, may_lose
        self.faults: list[str] = []
        self._turns = 0
        self._acks = random.random() < 0.5
        self._names = random.random() < 0.5  # its session in each message
        self._style = random.choice(("header", "query", "in band"))
        self._over = False
        self._silence = trio.CancelScope()
        self.heard_at = 0.0
        self.longest_s = 0.0  #: without an event
        self._forget()

    def _forget(self) -> None:
        self.session_id: str | None = None
        self.events: list[dict[str, Any]] = []  #: those of the session
        self._sent: dict[str, dict[str, Any]] = {}  # by step_id, what no event has shown to be there
        self._due: dict[str, tuple[str, int]] = {}  # messages without an end: text, kills by then
        self._ended: dict[str, str] = {}
        self._elsewhere = False
        self._streamed: dict[str, str] = {}
        self._history: list[dict[str, Any]] = []
        self._answers = self._answers_at_most = 0

    @property
    def last_seq(self) -> int:
        return len(self.events)

    @property
    def idle(self) -> bool:
        return not self._due

    def finish(self) -> None:
        """No message is sent any more; `run` returns when all are answered."""
        self._over = True

    async def run(self) -> None:
        try:
            with self._silence:
                self._heard()
                while not (self._over and self.idle):
                    await self._once(self._converse)
                    await trio.sleep(self._random.uniform(0, 2) * AGAIN_S)
            if self._silence.cancelled_caught:
                raise Fault(f"nothing came for {SILENCE_S} s; due: {self._due}")
        except Fault as fault:
            self._say(fault)

    async def check_again(self) -> None:
        """Reads the whole session anew, as another client does, and compares it with what came before."""
        seen: list[dict[str, Any]] = []
        exported: list[dict[str, Any]] = []
        patience = trio.move_on_after(SILENCE_S)

        async def read(websocket: WebSocketConnection) -> None:
            await self._send(websocket, "user.reconnect", session_id=self.session_id, last_seq=0)
            await self._send(websocket, "user.request_state")
            while len(seen) < len(self.events) or not exported:
                event = json.loads(await websocket.get_message())
                patience.deadline = trio.current_time() + SILENCE_S
                if "seq" in event:
                    seen.append(event)
                elif event["event"] == "agent.state_exported":
                    exported.append(event["content"])
                elif event["event"] == "system.error" and self._refused(event, event["content"]):
                    return

        try:
            with patience:
                while len(seen) < len(self.events) or not exported:
                    seen.clear()
                    await self._once(read)
                    if self.session_id is None:
                        return
            if (found := [_bare(event) for event in seen]) != [_bare(event) for event in self.events]:
                place = next((i for i, pair in enumerate(zip(found, map(_bare, self.events), strict=False))
                              if pair[0] != pair[1]), min(len(seen), len(self.events)))  # fmt: skip
                raise Fault(f"read anew it differs at {place}: {seen[place : place + 2]}")
            state, history = exported[-1]["state"], exported[-1]["history"]
            if not self._answers <= state.get("answers", 0) <= self._answers_at_most:
                raise Fault(f"state {state}, not {self._answers} to {self._answers_at_most} answers")
            if history != self._history:
                raise Fault(f"history {history[-3:]}, not {self._history[-3:]}")
        except Fault as fault:
            self._say(fault)

    async def _once(self, use: Any) -> None:
        headers, url = [("X-Talker", str(self.number))], self._random.choice(self._urls)
        if self.session_id is not None:
            if self._style == "header" or self._elsewhere:
                headers.append(("X-Session-Id", self.session_id))
            elif self._style == "query":
                url += f"?session_id={self.session_id}"

        async def shielded(websocket: WebSocketConnection) -> None:
            try:
                await use(websocket)
            except ConnectionClosed:
                self._count["connections cut by the other side"] += 1
            except Fault as fault:  # not through the nursery of the connection, as a group
                self._say(fault)
                self._over = True
                self._due.clear()

        try:
            await with_connection(url, headers, shielded)
        except CannotConnect as refused:
            self._count[f"refused: {refused.code}" if refused.code else "not connected"] += 1

    async def _converse(self, websocket: WebSocketConnection) -> None:
        if self.session_id is None:
            await self._send(websocket, "user.create_session")
        else:
            self._count["resumed"] += 1
            fields: dict[str, Any] = {"session_id": self.session_id, "last_seq": self.last_seq}
            if self._names and self._random.random() < 0.2:
                # One that names it not would begin another session, if it spoke just as it lost this one.
                fields["exclusive"] = True
            await self._send(websocket, "user.reconnect", **fields)
        with trio.move_on_after(self._random.expovariate(0.3)) as cut:
            resumed = False
            while True:
                event = json.loads(await websocket.get_message())
                self._heard()
                name, content = event["event"], event["content"]
                if name == "system.error":
                    if self._refused(event, content):
                        return
                elif name == "system.notice" and "seq" not in event:
                    if content["code"] == "gap":
                        raise Fault(f"a hole: {content}, after {self.last_seq}")
                    if content["code"] == "taken_over":  # by its own wish, which a suspended host read late
                        self._count["taken over by an older connection"] += 1
                        return
                    if content["code"] == "resumed":
                        self._elsewhere, resumed = False, True
                        for fields in self._sent.values():
                            await self._send(websocket, "user.message", **fields)
                elif "seq" in event:
                    self._take(event)
                    if name == "agent.session_created":
                        resumed = True
                    if self._acks and self.last_seq % 7 == 0:
                        await self._send(websocket, "user.ack", seq=self.last_seq)
                if self._over and self.idle:
                    return
                if (
                    resumed
                    and not self._over
                    and (self.idle or (self._eager and len(self._due) < 2) or self._random.random() < 0.02)
                ):
                    if not self._eager:
                        await trio.sleep(self._random.uniform(0, 0.5))
                    await self._speak(websocket)
        if cut.cancelled_caught:
            self._count["connections cut by the client"] += 1

    async def _speak(self, websocket: WebSocketConnection) -> None:
        self._turns += 1
        step_id = f"step-{self.number}-{self._turns}"
        text = f"m{self._turns} {self._random.randint(0, 40)} {self._random.choice((0, 0.002, 0.02))}"
        named = {"session_id": self.session_id} if self._names else {}
        self._sent[step_id] = {"content": text, "step_id": step_id, **named}
        self._due[step_id] = text, -1 if self._kills.under_way else self._kills.so_far
        await self._send(websocket, "user.message", **self._sent[step_id])

    def _refused(self, event: dict[str, Any], content: dict[str, Any]) -> bool:
        """Whether this connection is of no use."""
        code = content["code"]
        self._count[f"error: {code}"] += 1
        if code == "duplicate":
            self._sent.pop(event["step_id"], None)
            return False
        if code == "session_elsewhere":
            self._elsewhere = True
            return True
        if code == "session_not_found" and content.get("reason") == "node_lost":
            assert self.session_id is not None
            if self._may_lose(self.session_id):
                self._count["sessions lost with their machine, and said so"] += 1
                self._count["turns lost with their machine"] += len(self._due)
                self._forget()
                return True
        if code in ("session_unreachable", "draining", "max_sessions", "host_full"):
            return True
        raise Fault(f"refused: {content}")

    def _take(self, event: dict[str, Any]) -> None:
        if event["seq"] != self.last_seq + 1:
            kind = "doubled" if event["seq"] <= self.last_seq else "a hole"
            same = event["seq"] <= self.last_seq and _bare(self.events[event["seq"] - 1]) == _bare(event)
            raise Fault(f"{kind}: {event['seq']} after {self.last_seq}, the same: {same}: {event}")
        self.events.append(event)
        self._count["events"] += 1
        name, step_id, content = event["event"], event["step_id"], event["content"]
        if name == "agent.session_created":
            self.session_id = event["session_id"]
        elif name == "system.notice":
            if content["code"] != "turn_restarted":
                raise Fault(f"unexpected: {event}")
            self._count["turns restarted"] += 1
            self._streamed[step_id] = ""
        elif name == "agent.partial_answer":
            before = self._streamed.get(step_id, "")
            number = before.count(" ")
            if content != f"{self._text(step_id).split()[0]}.{number} ":
                raise Fault(f"reordered: {content} where {number} was due")
            self._streamed[step_id] = before + content
            self._sent.pop(step_id, None)
        elif name in TURN_ENDS:
            self._end(event, name, step_id, content)
        else:
            raise Fault(f"unexpected: {event}")

    def _text(self, step_id: str) -> str:
        if step_id in self._ended:
            raise Fault(f"{step_id} goes on after its end, {self._ended[step_id]}")
        if step_id not in self._due:
            raise Fault(f"{step_id} was never asked for")
        return self._due[step_id][0]

    def _end(self, event: dict[str, Any], name: str, step_id: str, content: Any) -> None:
        text = self._text(step_id)
        if step_id != next(iter(self._due)):
            raise Fault(f"reordered: {step_id} ended before {next(iter(self._due))}")
        _, kills = self._due.pop(step_id)
        self._sent.pop(step_id, None)
        self._ended[step_id] = name
        streamed = self._streamed.pop(step_id, "")
        self._count["turns"] += 1
        if name == "agent.final_answer":
            self._answers += 1
            self._answers_at_most += 1
            if not self._answers <= content["answers"] <= self._answers_at_most:
                raise Fault(f"state: {content['answers']} answers, not {self._answers}")
            self._answers = self._answers_at_most = content["answers"]
            if content["history"] != _digest(self._history):
                raise Fault(f"history is not {self._history[-4:]} at {step_id}")
            if streamed.count(" ") != int(text.split()[1]):
                raise Fault(f"answered after {streamed!r}, which is not all")
        elif name == "agent.error" and content.get("code") == "instance_lost":
            self._count["turns lost with their instance, and reported"] += 1
            if kills == self._kills.so_far:
                raise Fault(f"{step_id} was lost, though nothing was killed")
        elif name == "agent.interrupted" and content.get("code") == "service_stopped":
            self._count["turns interrupted by the end of a host that had been suspended"] += 1
            self._answers_at_most += 1
            if kills == self._kills.so_far:
                raise Fault(f"{step_id} was interrupted, though it could have been drained")
        else:
            raise Fault(f"{step_id} ended with {name}: {content}")
        self._history.append({"role": "user", "content": text})
        if name == "agent.final_answer":
            self._history.append({"role": "assistant", "content": content})
        elif streamed:
            self._history.append({"role": "assistant", "content": streamed, "incomplete": True})
        del self._history[:-MAX_HISTORY]  # a host forgets older ones too

    @staticmethod
    async def _send(websocket: WebSocketConnection, event: str, **fields: Any) -> None:
        await websocket.send_message(json.dumps({"event": event, **fields}))

    def _heard(self) -> None:
        now = trio.current_time()
        self.longest_s = max(self.longest_s, now - (self.heard_at or now))
        self.heard_at = now
        self._silence.deadline = now + SILENCE_S

    def _say(self, fault: Fault) -> None:
        last = [(e["seq"], e["event"], e["step_id"]) for e in self.events[-3:]]
        self.faults.append(f"client {self.number} ({self._style}), {self.session_id}: {fault}; last: {last}")
        print(self.faults[-1], flush=True)


def _bare(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "connection_id"}


def _digest(history: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(history, sort_keys=True).encode()).hexdigest()
