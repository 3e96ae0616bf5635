"""A refusal's body, as it is written and as clients read it, of this version and of the one before."""

import pytest

from agentmgr.websocket.refusal import Refusal, RefusalCode, read_refusal


def test_what_is_written_is_read():
    refusal = Refusal(403, RefusalCode.FORBIDDEN, "not here", (("Retry-After", "1"),))
    head, _, body = refusal.response.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    assert status == "HTTP/1.1 403 Forbidden"
    assert {"Retry-After: 1", "Connection: close", f"Content-Length: {len(body)}"} < set(lines)
    assert read_refusal(body) == ("forbidden", "not here")


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (b'{"code": "forbidden", "detail": "not here"}', ("forbidden", "not here")),  # an older host's
        (b'{"reason": "not here"}', (None, "not here")),
        (b'{"code": 7, "reason": 8}', (None, "8")),
        (b'{"code": "forbidden"}', (None, "")),
        (b"<h1>Not found</h1>", (None, "")),
        (b"[" * 100_000, (None, "")),
        (b"[1]", (None, "")),
        (b"\xff", (None, "")),
        (b"", (None, "")),
    ],
    ids=range(9),
)
def test_what_others_answer(body, read):
    assert read_refusal(body) == read
