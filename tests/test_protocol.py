"""`agentmgr.protocol` says all of the wire protocol, and says it as the host does."""

import re
from pathlib import Path

import pytest

from agentmgr import jsontext, protocol
from agentmgr.agent import client_link, drain, limits, readers

PACKAGE = Path(protocol.__file__).parent
EVENTS = [value for value in vars(protocol).values() if isinstance(value, str) and re.fullmatch(
    r"(user|agent|system)\.\w+|ping|pong", value
)]  # fmt: skip
ENUMS = (protocol.ErrorCode, protocol.NoticeCode, protocol.LossReason, protocol.EndReason, protocol.TurnCode)


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_is_described(name: str) -> None:
    assert re.search(rf"^ {{4}}{re.escape(name)} ", protocol.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize("code", [code for enum in ENUMS for code in enum])
def test_the_host_uses_every_code(code: protocol.ErrorCode) -> None:
    used = f"{type(code).__name__}.{code.name}"
    assert any(used in file.read_text() for file in (PACKAGE / "agent").glob("*.py"))


def test_names_stand_nowhere_else_in_the_code() -> None:
    literal = re.compile(r'(?<!`)"((?:user|agent|system)\.\w+)"')
    for folder in ("agent", "client", "testing", "cli"):
        for file in (PACKAGE / folder).rglob("*.py"):
            code = re.sub(r'""".*?"""', "", file.read_text(), flags=re.DOTALL)
            assert not set(literal.findall(code)) & set(EVENTS), file


def test_the_limits_are_those_of_the_host() -> None:
    text = " ".join((protocol.__doc__ or "").split())
    for said in (
        f"step_id {limits.MAX_ID_CHARS} characters",
        f"{limits.MAX_QUEUED}, and {limits.QUEUE_BYTES >> 20} MiB where text counts twice, in each session",
        f"{limits.MAX_SESSIONS}, else `max_sessions`",
        f"{limits.MAX_CONTROL_BYTES >> 10} KiB; then the host reads no more",
        f"{jsontext.MAX_DEPTH} in what a client sends",
        f"{jsontext.MAX_DEPTH_SAID} in what the agent sends",
        f"last {limits.REMEMBERED_STEPS} is refused as `duplicate`",
        f"last {limits.SessionLimits().buffer_events} events or the last MiB",
        f"at most {limits.MAX_HISTORY} entries and {limits.HISTORY_BYTES >> 20} MiB",
        f"for one of over {limits.ENTRY_BYTES >> 20} MiB",
        f"of a stream of over {limits.STREAM_BYTES >> 20} MiB",
        f"requests within {limits.STATE_PAUSE_S:g} s get one answer",
        f"{limits.HOST_BYTES >> 20} MiB. Over that it forgets",
        f"over {limits.STATE_BYTES >> 20} MiB, or JSON cannot say it",
        f"{readers.ACK_PATIENCE_S:.0f} s for their acks, then {readers.STALL_S:.0f} s for one to read",
        f"takes in no byte for {client_link.WRITE_STALL_S:.0f} s",
        f"every {client_link.HEARTBEAT_S:.0f} s after",
        f"silent for {client_link.QUIET_S / 60:.0f} min",
        f"nothing for {client_link.GREETING_DELAY_S:.0f} s",
        f"from the client for {drain.LINGER_S:g} s ({drain.FIRST_FRAME_S:.0f} s, before its first frame)",
        f"between two turns once it drains for {drain.LONGEST_LINGER_S:.0f} s",
        f"made more than {drain.ROUTED_AWAY_S:.0f} s after the drain began",
    ):
        assert said in text, said
    assert limits.SessionLimits().buffer_bytes == 2**20
