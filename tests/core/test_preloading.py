"""What a second stage imports: installed packages, never what the author may change; and which one stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.preloading import WORTH_MODULES, Kept, chosen, hidden, installed, makes_room, to_import

LIBRARY, SITE = "/usr/lib/python3.11", "/home/me/project/.venv/lib/python3.11/site-packages"
MANY = tuple(f"many.m{number}" for number in range(WORTH_MODULES))


@pytest.mark.parametrize(
    ("origin", "is_installed"),
    [
        (f"{SITE}/langgraph/graph/__init__.py", True),
        (f"{SITE}/six.py", True),
        (f"{SITE}/numpy/core/_multiarray.cpython-311-x86_64-linux-gnu.so", True),
        (f"{LIBRARY}/asyncio/__init__.py", True),
        ("/home/me/project/agent.py", False),
        ("/home/me/project/tools/__init__.py", False),
        ("/home/me/editable/src/mine/__init__.py", False),  # pip install -e
        (f"{SITE}-old/six.py", False),
        ("built-in", False),
        ("frozen", False),
        (None, False),  # a namespace package: it comes with what is in it
    ],
)
def test_only_what_is_below_a_directory_of_packages_is_installed(
    origin: str | None, is_installed: bool
) -> None:
    assert installed([("it", origin)], [LIBRARY, f"{SITE}/"]) == (("it",) if is_installed else ())


def test_modules_stay_in_the_order_of_their_imports() -> None:
    origins = [(name, f"{SITE}/{name}.py") for name in ("zeta", "alpha", "middle")]
    assert installed(origins, [SITE]) == ("zeta", "alpha", "middle")


@pytest.mark.parametrize(
    ("preload", "reported", "agent", "expected"),
    [
        ("auto", MANY, "agent.py", MANY),
        ("auto", MANY[1:], "agent.py", ()),  # too few
        ("auto", None, "agent.py", ()),  # an older host
        ("off", MANY, "agent.py", ()),
        ("numpy, pandas.core,numpy", MANY, "agent.py", ("numpy", "pandas.core")),
        ("numpy", None, "agent.py", ("numpy",)),
        ("auto", (*MANY, "mine", "mine.tools"), "mine.agents:support", MANY),
        ("auto", (*MANY, "mine"), "/srv/mine.py", (*MANY, "mine")),  # a file, which no module is named by
    ],
)
def test_what_a_second_stage_imports(
    preload: str, reported: tuple[str, ...] | None, agent: str, expected: tuple[str, ...]
) -> None:
    assert to_import(preload, reported, agent) == expected


def test_the_option_names_modules_or_leaves_it_to_the_host() -> None:
    assert chosen("auto") is None
    assert chosen("off") == ()
    assert chosen("a.b, c") == ("a.b", "c")


def test_a_file_of_the_authors_with_the_name_of_a_preloaded_module_is_found() -> None:
    assert hidden({"agent", "yaml"}, ["langgraph", "yaml"]) == ["yaml"]
    assert hidden({"agentmgr", "agent"}, ["agentmgr", "yaml"]) == []


def test_a_first_start_fills_free_room_and_takes_none() -> None:
    assert makes_room([("a", Kept(9, 1.0))], most=2, starts=1) == (True, None)
    assert makes_room([("a", Kept(0, 1.0)), ("b", Kept(5, 1.0))], most=2, starts=1) == (False, None)
    assert makes_room([], most=0, starts=5) == (False, None)


def test_the_least_used_goes_first_and_of_equals_the_one_that_is_idle_for_longest() -> None:
    kept = [("often", Kept(9, 1.0)), ("new", Kept(1, 5.0)), ("old", Kept(1, 3.0))]
    assert makes_room(kept, most=3, starts=2) == (True, "old")


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 4), st.integers(1, 9))
def test_none_goes_for_a_service_that_is_started_less(uses: list[int], most: int, starts: int) -> None:
    kept = [(number, Kept(count, 0.0)) for number, count in enumerate(uses)]
    may, goes = makes_room(kept, most=most, starts=starts)
    assert (goes is not None) <= may
    if goes is not None:
        assert uses[goes] == min(uses) < starts
    if len(uses) < most:
        assert (may, goes) == (True, None)
