"""A log of any size is read by position: a window of lines, a search from the end, a download, a follow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.client.http import request
from agentmgr.manager import AgentManager
from agentmgr.supervisor import log_window
from agentmgr.supervisor.log_window import MAX_LINE_BYTES, search, window
from agentmgr.supervisor.logs import rotate


def walked(path: Path, limit: int) -> tuple[list[str], list[str]]:
    """All lines, read forward from the beginning, and backward from the end."""
    forward, position = [], log_window.extent(path)[0]
    while (part := window(path, limit, after=position)).lines:
        forward += [line.text for line in part.lines]
        position = part.after
    backward: list[str] = []
    part = window(path, limit)
    while part.lines:
        backward = [line.text for line in part.lines] + backward
        part = window(path, limit, before=part.before)
    return forward, backward


@given(st.lists(st.text("ab中\r \x1b", max_size=12), max_size=40), st.booleans(), st.integers(1, 7))
def test_every_line_is_met_once_forward_and_backward(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], ended: bool, limit: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "0.log"
    text = "\n".join(lines) + ("\n" if ended and lines else "")
    path.write_bytes(text.encode())
    expected = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    assert walked(path, limit) == (expected, expected)


def test_rotated_files_lie_before_the_live_one_and_positions_stay(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    expected = []
    for part in range(3):
        with path.open("ab") as file:
            for number in range(3000):
                expected.append(f"{part} line {number:05}")
                file.write(expected[-1].encode() + b"\n")
        if part < 2:
            (one,) = window(path, 1, before=window(path, 5).before).lines
            assert rotate(path, 2**15, 4)
            assert window(path, 1, at=one.at + 3).lines == (one,)
    assert walked(path, 500) == (expected, expected)
    found = search(path, "LINE 00007", 10)
    assert [match.text for match in found.items] == [f"{part} line 00007" for part in (2, 1, 0)]
    assert (found.before, found.items[0].start) == (None, 2)
    assert window(path, 1, at=found.items[2].at).lines[0].text == "0 line 00007"


def test_a_long_line_comes_in_pieces_and_none_breaks_a_character(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    long = "é" * MAX_LINE_BYTES + "needle" + "中" * MAX_LINE_BYTES
    path.write_text(f"before\n{long}\nafter\n")
    part = window(path, 100, after=0)
    assert "".join(line.text for line in part.lines if line.text not in ("before", "after")) == long
    assert [line.cut for line in part.lines] == [False, *[True] * (len(part.lines) - 3), False, False]
    (match,) = search(path, "NEEDLE", 10).items
    assert match.text[match.start :].startswith("needle")
    assert len(match.text.encode()) <= MAX_LINE_BYTES + 4


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"\xff\xfe bad\nrest")
    assert [(line.text, line.cut) for line in window(path, 9).lines] == [
        ("\ufffd\ufffd bad", False),
        ("rest", True),
    ]
    assert search(path, "Bad", 9).items[0].start == 3


@pytest.mark.parametrize("text", ["ÄPFEL", "Straße"])
def test_a_search_beyond_ascii_ignores_case_too(tmp_path: Path, text: str) -> None:
    path = tmp_path / "0.log"
    path.write_text("eins\nzwei äpfel der STRASSE\ndrei\n")
    (match,) = search(path, text, 9).items
    assert match.text.startswith("zwei")


def test_a_search_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_text("".join(f"hit {number}\nmiss\n" for number in range(25)))
    seen, before = [], None
    while True:
        found = search(path, "hit", 10, before=before)
        seen += [match.text for match in found.items]
        if (before := found.before) is None:
            break
    assert seen == [f"hit {number}" for number in reversed(range(25))]


def test_a_million_lines_are_read_in_windows(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_text("".join(f"{number:07} the quick brown fox\n" for number in range(1_000_000)))
    began = time.process_time()
    middle = window(path, 200, at=path.stat().st_size // 2)
    assert middle.lines[0].text == "0500000 the quick brown fox"
    assert len(window(path, 200, before=middle.before).lines) == 200
    assert time.process_time() - began < 0.5
    found = search(path, "0000003 THE", 10)
    assert [match.at for match in found.items] == [3 * 28]


async def test_the_api_shows_a_window_finds_and_sends_all(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    await http.post("/services", json={"name": "x", "agent_factory_path": agent_file, "instances": 2})
    empty = (await http.get("/services/x/logs/lines")).json()
    assert empty == {"begin": 0, "end": 0, "lines": [], "before": 0, "after": 0}
    log = manager.log_path("x", 1)
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\n")
    shown = (await http.get("/services/x/logs/lines?instance=1&limit=2")).json()
    assert shown == {
        "begin": 0,
        "end": 14,
        "lines": [{"at": 4, "text": "two", "cut": False}, {"at": 8, "text": "three", "cut": False}],
        "before": 4,
        "after": 14,
    }
    found = (await http.get("/services/x/logs/matches?instance=1&q=TW")).json()
    assert found == {"items": [{"at": 4, "text": "two", "start": 0}], "before": None}
    response = await http.get("/services/x/logs/file?instance=1")
    assert response.text == "one\ntwo\nthree\n"
    assert response.headers["Content-Disposition"] == 'attachment; filename="x-1.log"'


async def test_a_follow_begins_at_a_position(
    http: httpx2.AsyncClient, url: str, manager: AgentManager, agent_file: str
) -> None:
    await http.post("/services", json={"name": "x", "agent_factory_path": agent_file})
    log = manager.log_path("x")
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\n")
    target = "/api/v1/services/x/logs?follow=true&since=4"
    async with request(url, "GET", target, headers={}) as followed:
        with trio.fail_after(60):
            assert await followed.receive() == b"two\nthree\n"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("lines?instance=2", "instance"),
        ("lines?at=1&after=2", "at"),
        ("lines?limit=0", "limit"),
        ("matches?q=", "q"),
        ("matches", "q"),
        ("file?instance=-1", "instance"),
        ("?since=3", "since"),
        ("?since=3&follow=true", "since"),
    ],
)
async def test_a_wrong_question_names_its_field(
    http: httpx2.AsyncClient, agent_file: str, path: str, field: str
) -> None:
    body: dict[str, Any] = {"name": "x", "agent_factory_path": agent_file, "instances": 2}
    await http.post("/services", json=body)
    slash = "" if path.startswith("?") else "/"
    response = await http.get(f"/services/x/logs{slash}{path}")
    assert (response.status_code, response.json()["errors"][0]["path"]) == (400, field)
