"""The judge of heads: what is let through, and what is refused with which status."""

from __future__ import annotations

from contextlib import suppress

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.websocket.head import (
    BadResponse,
    HeadReader,
    accept_token,
    check_switch,
    check_upgrade,
    parse_request,
    parse_response,
    upgrade_request,
)
from agentmgr.websocket.refusal import Refusal

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
FIELDS = {
    "Host": "localhost:9090",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def head(line: str = "GET /chat?x=1 HTTP/1.1", extra: str = "", **changes: str | None) -> bytes:
    """A good head with some lines changed or (None) left out; underscores in names stand for dashes."""
    fields = FIELDS | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"{line}\r\n{lines}{extra}\r\n".encode("latin-1")


def refused(data: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check_upgrade(parse_request(data))
    return caught.value


def test_a_good_head() -> None:
    request = parse_request(head(extra="Cookie: a=1\r\nX-Team:blue \t\r\ncookie: b=2\r\nX-Team: red\r\n"))
    assert request.target == "/chat?x=1"
    assert request.key == KEY
    assert request.by_name["cookie"] == "a=1; b=2"
    assert request.by_name["x-team"] == "blue, red"


@pytest.mark.parametrize(
    "line",
    [
        "GET /chat HTTP/1.0",
        "GET /chat HTTP/2.0",
        "GET /chat HTTP/1.1 ",
        "GET  /chat HTTP/1.1",
        "GET /chat",
        "POST /chat HTTP/1.1",
        "CONNECT localhost:22 HTTP/1.1",
        "GET http://localhost/chat HTTP/1.1",
        "GET * HTTP/1.1",
        "GET chat HTTP/1.1",
        "GET /chat#part HTTP/1.1",
        "GET /ch\u00e4t HTTP/1.1",
        "GET /chat\x7f HTTP/1.1",
        "GET /a b HTTP/1.1",
        "",
    ],
)
def test_bad_request_lines(line: str) -> None:
    assert refused(head(line)).status == 400


@pytest.mark.parametrize(
    "extra",
    [
        "Host: other\r\n",
        f"Sec-WebSocket-Key: {KEY}\r\n",
        "Sec-WebSocket-Version: 13\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Expect: 100-continue\r\n",
        "X-Space : 1\r\n",
        " folded\r\n",
        "\tfolded\r\n",
        "X-Fold: 1\r\n  more\r\n",
        "no colon\r\n",
        ": no name\r\n",
        "X-(Odd): 1\r\n",
        "X-Bell: \x07\r\n",
        "X-Null: \x00\r\n",
        "X-Lf: a\nX-Smuggled: b\r\n",
        "X-Cr: a\rb\r\n",
        "Connection: host\r\n",
        "Connection: Sec-WebSocket-Key\r\n",
        "Sec-WebSocket-Protocol: a b\r\n",
        "Sec-WebSocket-Protocol: ,\r\n",
        "Sec-WebSocket-Protocol: caf\u00e9\r\n",
    ],
)
def test_bad_fields(extra: str) -> None:
    assert refused(head(extra=extra)).status == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"Host": None},
        {"Host": ""},
        {"Host": "a b"},
        {"Host": "a/b"},
        {"Host": "user@host"},
        {"Host": "[::1"},
        {"Sec_WebSocket_Key": None},
        {"Sec_WebSocket_Key": "short"},
        {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZR=="},
        {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=\u00e9"},
    ],
)
def test_bad_values(changes: dict[str, str | None]) -> None:
    assert refused(head(**changes)).status == 400


@pytest.mark.parametrize("host", ["a", "localhost:9090", "127.0.0.1", "[::1]:80", "xn--bcher-kva.example"])
def test_good_hosts(host: str) -> None:
    assert parse_request(head(Host=host)).by_name["host"] == host


@pytest.mark.parametrize("version", [None, "12", "14", "8", "13, 8"])
def test_other_versions_are_told_which_one_is_spoken(version: str | None) -> None:
    refusal = refused(head(Sec_WebSocket_Version=version))
    assert (refusal.status, refusal.code) == (426, "unsupported_version")
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in refusal.response


@pytest.mark.parametrize(
    "changes", [{"Upgrade": None}, {"Connection": None}, {"Connection": "keep-alive"}, {"Upgrade": "h2c"}]
)
def test_plain_http_is_told_to_upgrade(changes: dict[str, str | None]) -> None:
    assert refused(head(**changes)).status == 426


@pytest.mark.parametrize("value", ["Upgrade", "keep-alive, Upgrade", "upgrade,close", "UPGRADE"])
def test_good_connection_values(value: str) -> None:
    assert parse_request(head(Connection=value))


def test_what_connection_names_is_not_passed_on() -> None:
    request = parse_request(
        head(Connection="Upgrade, X-Hop", extra="X-Hop: 1\r\nX-End: 2\r\nTE: trailers\r\n")
    )
    names = {name for name, _ in request.end_to_end}
    assert names == {"Host", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "X-End"}


def test_over_a_hundred_fields() -> None:
    fits = "".join(f"X-{i}: 1\r\n" for i in range(95))
    assert parse_request(head(extra=fits))
    assert refused(head(extra=fits + "X-More: 1\r\n")).status == 431


@pytest.mark.parametrize("size", [17_200, 1000])
def test_over_sixteen_kib_at_once_and_in_pieces(size: int) -> None:
    data = head(extra=f"X-Big: {'x' * 17_000}\r\n")
    reader = HeadReader(max_bytes=16_384, max_fields=100)

    def feed_all() -> None:
        for i in range(0, len(data), size):
            reader.feed(data[i : i + size])

    with pytest.raises(Refusal) as caught:
        feed_all()
    assert caught.value.status == 431


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\n", b"\x16\x03\x01\x02", b"SSH-2.0-x\r\n", b"GET / HTTP/1.0\r\n"]
)
def test_garbage_is_refused_before_it_is_complete(data: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        HeadReader(max_bytes=16_384, max_fields=100).feed(data)
    assert caught.value.status == 400


@given(st.data())
def test_a_head_may_come_in_any_pieces(data: st.DataObject) -> None:
    whole = head() + b"\x81\x80early"
    reader = HeadReader(max_bytes=16_384, max_fields=100)
    position, request = 0, None
    while request is None:
        size = data.draw(st.integers(1, 80))
        request = reader.feed(whole[position : position + size])
        position += size
    assert request == parse_request(head())
    assert reader.rest == whole[len(head()) : position]


@given(st.binary(max_size=400))
def test_garbage_never_raises_anything_but_a_refusal(data: bytes) -> None:
    with suppress(Refusal):
        HeadReader(max_bytes=300, max_fields=10).feed(data)


_bytes = st.integers(0, 255).map(lambda i: bytes([i]))


@given(st.integers(0, 200), _bytes | st.just(b""), st.booleans())
def test_whatever_passes_after_a_change_of_one_byte_is_what_h11_reads(
    place: int, byte: bytes, insert: bool
) -> None:
    """Nothing that we let through is read differently by the parser behind us: no smuggling."""
    good = head(extra="X-Last: value\r\n")
    place %= len(good)
    data = good[:place] + byte + good[place if insert else place + 1 :]
    reader = HeadReader(max_bytes=16_384, max_fields=100)
    try:
        request = reader.feed(data)
    except Refusal:
        return
    if request is None or reader.rest:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    event = server.next_event()
    assert isinstance(event, h11.Request)
    assert event.target.decode() == request.target
    assert [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in event.headers] == [
        (name.lower(), value) for name, value in request.fields
    ]


def answer(extra: str = "", line: str = "HTTP/1.1 101 Switching Protocols", accept: str = "") -> bytes:
    token = accept or accept_token(KEY)
    lines = (line, "Upgrade: WebSocket", "Connection: upgrade", f"Sec-WebSocket-Accept: {token}", extra)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n"


def test_the_accept_token_of_the_rfc() -> None:
    assert accept_token(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_good_answer() -> None:
    request = parse_request(head(Sec_WebSocket_Protocol="a, b"))
    check_switch(parse_response(answer("Sec-WebSocket-Protocol: b\r\n")), request)


@pytest.mark.parametrize(
    "data",
    [
        answer(accept="s3pPLMBiTxaQ9kYGzzhZRbK+xOo"),
        answer("Sec-WebSocket-Protocol: c\r\n"),
        answer("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\n"),
        answer("Sec-WebSocket-Extensions: permessage-deflate\r\n"),
        answer().replace(b"WebSocket\r\nConn", b"h2c\r\nConn"),
        answer().replace(b"Connection: upgrade", b"Connection: close"),
    ],
)
def test_false_101s(data: bytes) -> None:
    request = parse_request(head(Sec_WebSocket_Protocol="a, b"))
    with pytest.raises(BadResponse):
        check_switch(parse_response(data), request)


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0-OpenSSH\r\n\r\n", answer(line="HTTP/1.0 101 x"), answer("X: a\nb\r\n"), answer(" folded\r\n")],
)
def test_answers_that_are_not_http(data: bytes) -> None:
    with pytest.raises(BadResponse):
        parse_response(data)


def test_an_upgrade_made_of_a_head_is_judged_good_and_says_the_same() -> None:
    request = parse_request(head(Connection="Upgrade, X-Hop", extra="X-Hop: 1\r\nX-Team: red\r\n"))
    again = parse_request(upgrade_request(request.target, request.end_to_end))
    check_upgrade(again)
    assert (again.target, again.end_to_end) == (request.target, request.end_to_end)
    assert again.by_name["x-team"] == "red"
    assert "x-hop" not in again.by_name
