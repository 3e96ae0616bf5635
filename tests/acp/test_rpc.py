"""JSON-RPC by lines: what is refused, and with which code."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.acp.content import said
from agentmgr.acp.rpc import Answer, Lines, Notification, Refused, Request, RpcError, read, write


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":1}}', Request(1, "m", {"a": 1})),
        (b'{"id":"x","method":"m"}', Request("x", "m", {})),
        (b'{"method":"m","params":null}', Notification("m", {})),
        (b'{"id":1,"result":null}', Answer(1)),
        (b'{"id":1,"error":{"code":5}}', Answer(1, None, {"code": 5})),
        (b'{"id":1,"error":5}', Answer(1, None, {})),
    ],
)
def test_what_is_read(line, message):
    assert read(line) == message


@pytest.mark.parametrize(
    ("line", "id", "code"),
    [
        (b"hello", None, -32700),
        (b'{"id":1', None, -32700),
        (b'{"id":1,"method":"\xff"}', None, -32700),
        (b"[" * 100_000, None, -32700),
        (b'{"id":1,"method":"\\ud800"}', None, -32700),
        (b"[]", None, -32600),
        (b"5", None, -32600),
        (b'{"id":1}', 1, -32600),
        (b'{"id":1,"method":5}', 1, -32600),
        (b'{"id":[],"method":"m"}', None, -32600),
        (b'{"id":true,"method":"m"}', None, -32600),
        (b'{"id":1,"method":"m","params":[1]}', 1, -32602),
    ],
)
def test_what_is_refused(line, id, code):
    refused = read(line)
    assert isinstance(refused, Refused)
    assert (refused.id, refused.error.code) == (id, code)


@given(st.lists(st.integers(1, 40)), st.integers(1, 60))
def test_lines_are_the_same_however_they_are_cut(sizes, at):
    data = b"".join(write({"method": "m" * size}) for size in sizes)
    lines = Lines()
    pieces = [data[place : place + at] for place in range(0, len(data), at)]
    found = [message for piece in pieces for message in lines.feed(piece)]
    assert found == [Notification("m" * size, {}) for size in sizes]


def test_a_line_that_is_too_long_is_dropped_as_it_comes():
    lines = Lines(max_bytes=100)
    for _ in range(1000):
        assert list(lines.feed(b"x" * 50)) == []
    assert sum(map(len, lines._pieces)) <= 100
    refused, after = lines.feed(b'\n{"method":"m"}\n')
    assert isinstance(refused, Refused)
    assert (refused.id, refused.error.code) == (None, -32600)
    assert after == Notification("m", {})


@pytest.mark.parametrize("value", ["\ud800", math.nan, math.inf, "a\nb\u2028"])
def test_what_is_written_is_one_line_of_strict_json(value):
    line = write({"params": {"x": value}})
    assert line.count(b"\n") == 1
    json.loads(line.decode(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    ("blocks", "text", "attachments"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb", None),
        (
            [
                {"type": "text", "text": "read "},
                {"type": "resource_link", "uri": "file:///a.py", "name": "a.py"},
                {"type": "text", "text": " now"},
            ],
            "read [a.py](file:///a.py) now",
            [{"kind": "file", "url": "file:///a.py", "name": "a.py"}],
        ),
        (
            [
                {"type": "resource", "resource": {"uri": "file:///d/b.py", "text": "x = 1"}},
                {"type": "text", "text": "why?"},
            ],
            '[b.py](file:///d/b.py)\nwhy?\n\n<context ref="file:///d/b.py">\nx = 1\n</context>',
            None,
        ),
        (
            [{"type": "resource", "resource": {"uri": "file:///c", "blob": "aGk=", "mimeType": "x/y"}}],
            "[c](file:///c)",
            [{"kind": "file", "url": "data:x/y;base64,aGk=", "name": "c"}],
        ),
        (
            [{"type": "image", "data": "aGk=", "mimeType": "image/png"}],
            "",
            [{"kind": "image", "url": "data:image/png;base64,aGk="}],
        ),
    ],
)
def test_a_prompt_is_a_text_and_attachments(blocks, text, attachments):
    assert said(blocks) == (text, {} if attachments is None else {"attachments": attachments})


@pytest.mark.parametrize(
    "blocks",
    [
        None,
        [],
        {},
        [5],
        [{}],
        [{"type": "text"}],
        [{"type": "text", "text": 5}],
        [{"type": "text", "text": "  "}],
        [{"type": "audio", "data": "aGk=", "mimeType": "audio/wav"}],
        [{"type": "image", "data": "not base64!", "mimeType": "image/png"}],
        [{"type": "image", "data": "aGk=", "mimeType": "image/png,x"}],
        [{"type": "resource", "resource": {"uri": "u"}}],
        [{"type": "resource_link", "name": "n"}],
        [{"type": "image", "data": "aGk=", "mimeType": "image/png"}] * 33,
    ],
)
def test_a_prompt_that_no_agent_could_read_is_refused(blocks):
    with pytest.raises(RpcError) as refused:
        said(blocks)
    assert refused.value.code == -32602


GARBAGE = [
    (b"garbage\n", -32700),
    (b"\xff\xfe\n", -32700),
    (b"[]\n", -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"no/such","params":{}}\n', -32601),
    (b'{"jsonrpc":"2.0","id":2,"method":"initialize","params":{}}\n', -32602),
    (b'{"jsonrpc":"2.0","id":3,"method":"session/new","params":{"cwd":5}}\n', -32602),
    (b'{"jsonrpc":"2.0","id":4,"method":"session/prompt","params":{"sessionId":"x","prompt":[]}}\n', -32002),
    (b'{"jsonrpc":"2.0","id":5,"method":"session/load","params":{"cwd":"/"}}\n', -32602),
    (b" " * 100_000_000 + b"x\n", -32600),
]


def test_a_process_answers_each_piece_of_garbage_and_says_nothing_else():
    unheard = (
        b'\n{"jsonrpc":"2.0","method":"no/such"}\n{"jsonrpc":"2.0","method":"session/cancel"}\n'
        b'{"jsonrpc":"2.0","id":77,"result":{}}\n'
    )
    first = b'{"jsonrpc":"2.0","id":6,"method":"initialize","params":{"protocolVersion":7}}\n'
    data = b"".join(line for line, _ in GARBAGE) + unheard + first
    words = [sys.executable, "-m", "agentmgr", "acp", "agent", "--gateway", "ws://localhost:1"]
    done = subprocess.run(words, input=data, capture_output=True, timeout=60, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    refused = [(answer["id"], answer["error"]["code"]) for answer in answers if "error" in answer]
    ids = (None, None, None, 1, 2, 3, 4, 5, None)
    expected = [(id, code) for id, (_, code) in zip(ids, GARBAGE, strict=True)]
    assert sorted(refused, key=str) == sorted(expected, key=str)
    (hello,) = [answer for answer in answers if "result" in answer]
    assert (hello["id"], hello["result"]["protocolVersion"]) == (6, 1)
