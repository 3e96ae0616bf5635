"""Every text of the console has a Chinese one, no Chinese one is unused, and placeholders agree."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from agentmgr.console.files import STATIC
from agentmgr.models import DesiredStatus, HealthStatus, RestartMode, RunResult, ServiceStatus

_STRING = r'"(?:[^"\\]|\\.)*"'
_TEXT = re.compile(rf"\bt\(\s*({_STRING}(?:\s*\+\s*{_STRING})*)")
_LABEL = re.compile(rf"\blabel: ({_STRING})")  # of views and columns
_CHINESE = re.compile(rf"^  ({_STRING}):\s*({_STRING}),", re.MULTILINE)
_PLACE = re.compile(r"\{(\w+)\}")

#: Words of the API that views pass to `t` as they come; the last ones are states of sessions.
WORDS = {
    *ServiceStatus,
    *DesiredStatus,
    *HealthStatus,
    *RestartMode,
    *RunResult,
    "asking",
    "idle",
    "hibernated",
    "ended",
}


def modules() -> Iterator[str]:
    for path in sorted(STATIC.rglob("*.js")):
        if "vendor" not in path.parts and not path.name.startswith("zh"):
            yield path.read_text(encoding="utf-8")


def joined(literals: str) -> str:
    return "".join(json.loads(each) for each in re.findall(_STRING, literals))


def used() -> set[str]:
    named = [(STATIC / name).read_text(encoding="utf-8") for name in ("views.js", "views/sessions.js")]
    labels = {json.loads(label) for text in named for label in _LABEL.findall(text)} - {""}
    return labels | {joined(found[1]) for text in modules() for found in _TEXT.finditer(text)}


def chinese() -> list[tuple[str, str]]:
    return [
        (json.loads(found[1]), json.loads(found[2]))
        for path in sorted(STATIC.glob("zh*.js"))
        for found in _CHINESE.finditer(path.read_text(encoding="utf-8"))
    ]


def test_every_text_has_a_chinese_one() -> None:
    translated = {english for english, _ in chinese()}
    assert sorted((used() | WORDS) - translated) == []


def test_no_chinese_text_is_unused() -> None:
    everything, known = "\n".join(modules()), used() | WORDS
    assert [
        english
        for english, _ in chinese()
        if english not in known and json.dumps(english, ensure_ascii=False) not in everything
    ] == []


def test_no_text_has_two_chinese_ones() -> None:
    known = [english for english, _ in chinese()]
    assert sorted({english for english in known if known.count(english) > 1}) == []


def test_placeholders_agree() -> None:
    for english, text in chinese():
        assert set(_PLACE.findall(english)) == set(_PLACE.findall(text)), english
