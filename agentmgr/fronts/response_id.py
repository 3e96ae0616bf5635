"""The ids of responses, which say where a response is: nothing has to be remembered to find it again. Pure.

An id names a session, as its owner knows it, and a turn in it; for every other client that session does not
exist. It is a word to clients, and none of its parts is trusted when it comes back.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

from attrs import frozen

_PARTS = re.compile(
    r"(?P<after>\d{1,16}) (?P<part>\d{1,4}) (?P<created>\d{1,12}) (?P<background>[01]) "
    r"(?P<step>[\w.:-]{0,64}) (?P<session>(?:ses_[0-9a-f]{32,64}(?:\.[\w:.-]{1,100})?)?) "
    r"(?P<model>[^\r\n]{1,256})",
    re.ASCII,
)
_SHAPE = re.compile(r"(?:resp_|mcpr_|(?:msg|rs)_\d{1,6}\.)([\w-]{1,1024})", re.ASCII)


@frozen
class ResponseId:
    model: str
    session_id: str  #: "": it was not stored
    step_id: str  #: of the turn
    after_seq: int  #: the turn begins behind this event of its session
    created: int  #: Unix time
    part: int = 0  #: how many questions of the turn were answered before it begins
    background: bool = False

    def __str__(self) -> str:
        return "resp_" + self.word

    @property
    def word(self) -> str:
        text = (
            f"{self.after_seq} {self.part} {self.created} {self.background:d} "
            f"{self.step_id} {self.session_id} {self.model}"
        )
        return urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> ResponseId | None:
        """That of a response, or of one of its items; None where it is none of ours."""
        if (shape := _SHAPE.fullmatch(text)) is None:
            return None
        word = shape[1]
        try:
            found = _PARTS.fullmatch(urlsafe_b64decode(word + "=" * (-len(word) % 4)).decode())
        except ValueError:
            return None
        if found is None:
            return None
        return cls(
            found["model"],
            found["session"],
            found["step"],
            int(found["after"]),
            int(found["created"]),
            int(found["part"]),
            found["background"] == "1",
        )
