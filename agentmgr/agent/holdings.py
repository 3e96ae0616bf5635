"""What a session holds of its host's budget, and what of it it gives up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..boundary import attempt
from .budget import Budget, Offer
from .keeping import Keeping
from .limits import SESSION_BYTES, weigh
from .message import Client
from .transcript import Transcript
from .turn import Turns

if TYPE_CHECKING:
    from .session import Session


class Holdings:
    def __init__(self, session: Session, transcript: Transcript, turns: Turns, budget: Budget) -> None:
        self.history_bytes = 0
        self._session, self._transcript, self._turns = session, transcript, turns
        self._budget, self._share = budget, budget.share(self._give_up)
        self._client_bytes = 0

    @property
    def size(self) -> int:
        return self._share.size

    @property
    def keeping(self) -> Keeping | None:
        return self._transcript.keeping

    def of_client(self, client: Client) -> None:
        self._client_bytes = weigh(dict(client.headers))

    def count(self) -> None:
        """Says what it holds now; nothing once it has ended and its last event is read."""
        held, buffer, readers = 0, self._transcript.buffer, self._transcript.readers
        if not self._session.ended or readers:
            held = SESSION_BYTES + self._client_bytes + self.history_bytes + buffer.bytes_held
            held += self._turns.bytes_held
            if buffer.journaled:
                held += readers.bytes_held
        self._share.hold(held)

    def make_room(self) -> None:
        """After an event. What an agent says cannot be refused: what it said before makes room."""
        self.count()
        if not self._budget.make_room():
            self._transcript.buffer.give_up(self._budget.used - self._budget.limit)
            self.count()

    def offer(self) -> None:
        """Says what it gives up from now on for others."""
        present = bool(self._transcript.readers)
        if self._session.ended:
            offer = None
        elif self._turns:
            offer = Offer.WAITING if not present and len(self._turns) > 1 else None
        else:
            offer = Offer.DELIVERED if present else Offer.ABSENT
        self._share.offer(offer)

    def _give_up(self) -> None:
        """What it offers, as far as there is any."""
        buffer, readers = self._transcript.buffer, self._transcript.readers
        if readers:
            buffer.forget(min(reader.needed_from for reader in readers) - 1)
        elif self._turns:
            self._turns.give_up_waiting()
        else:
            buffer.forget(buffer.last_seq)
            if self._session.durable:
                self._session.leave()  # all of it is in the journal
                self.history_bytes = 0
            else:
                attempt(self._forget_history)
        self.count()

    def _forget_history(self) -> None:
        self._session.forgotten += len(self._session.history)
        self.history_bytes = 0
        self._session.history.clear()
