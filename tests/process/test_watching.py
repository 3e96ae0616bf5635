"""Which saves count, and which are one."""

import os
from importlib.machinery import SourceFileLoader
from pathlib import Path
from shutil import rmtree

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from agentmgr.process.watching import QUIET_S, Saves, Watched, forget_bytecode, named, watch
from tests.conditions import until


@pytest.mark.parametrize(
    "name",
    [
        "agent.py~", ".agent.py.swp", ".agent.py.swx", "#agent.py#", ".#agent.py", "4913", "agent.py.tmp",
        "agent.py___jb_tmp___", "agent.pyc", ".goutputstream-X1", ".git/index",
        "__pycache__/a.cpython-311.pyc",
        "deep/node_modules/x.js", ".venv/lib/a.py",
    ],
)  # fmt: skip
def test_what_editors_and_tools_write_for_themselves_does_not_count(name: str) -> None:
    assert not Watched("/project").covers(f"/project/{name}")


def test_a_directory_covers_what_is_below_it_and_a_suffix_narrows_it() -> None:
    assert Watched("/project").covers("/project/prompts/a.txt")
    assert not Watched("/project").covers("/projects/a.txt")
    assert Watched("/project", ".py").covers("/project/deep/a.py")
    assert not Watched("/project", ".py").covers("/project/a.txt")
    assert Watched("/somewhere/.venv/notes.tmp").covers("/somewhere/.venv/notes.tmp")


async def test_ten_saves_in_a_second_are_one(autojump_clock: trio.testing.MockClock) -> None:
    saves, reloads = Saves(), []

    async def reload() -> None:
        while True:
            reloads.append((await saves.settled(), trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reload)
        for number in range(10):
            saves.add(f"{number % 2}.py")
            await trio.sleep(0.1)
        await trio.sleep(60)
        assert [files for files, _ in reloads] == [["0.py", "1.py"]]
        saves.add("2.py")
        await trio.sleep(60)
        assert len(reloads) == 2
        nursery.cancel_scope.cancel()


async def test_one_during_a_reload_leads_to_one_more_and_endless_ones_do_not_hold_it_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    saves = Saves()
    saves.add("a")
    assert await saves.settled() == ["a"]
    assert not saves
    saves.add("b")
    saves.add("b")
    assert await saves.settled() == ["b"]
    assert not saves

    async def endless() -> None:
        while True:
            saves.add("c")
            await trio.sleep(QUIET_S / 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(endless)
        with trio.fail_after(10):
            assert await saves.settled() == ["c"]
        nursery.cancel_scope.cancel()


async def test_files_are_seen_below_links_that_are_turned_and_older_ones_once(tmp_path: Path) -> None:
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "a.py").write_text(release)
    current, ignored = tmp_path / "current", tmp_path / "1" / "own.db"
    current.symlink_to("1")
    env = tmp_path / "x.env"
    env.write_text("A=1")
    places = {
        "code": [Watched(str(current))], "env": [Watched(str(env))], "old": [Watched(str(tmp_path / "2"))]
    }  # fmt: skip
    send, seen = trio.open_memory_channel[tuple[str, str]](100)
    since = {"code": 2e12, "env": 2e12, "old": 0.0}
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            await watch(places, lambda *save: send.send_nowait(save), since.get, ignored=[ignored])

        nursery.start_soon(look)
        with trio.fail_after(30):
            assert await seen.receive() == ("old", str(tmp_path / "2" / "a.py"))  # the watch has begun
            ignored.write_text("a database")
            (tmp_path / "1" / "a.py").write_text("new")
            while (save := await seen.receive()) == ("old", str(tmp_path / "2" / "a.py")):
                pass
            assert save == ("code", str(current / "a.py"))
            other = tmp_path / "turned"
            other.symlink_to("2")
            other.rename(current)
            while await seen.receive() != ("code", str(current)):
                pass
            env.with_name("y.env").write_text("A=2")
            env.with_name("y.env").rename(env)
            while await seen.receive() != ("env", str(env)):
                pass
        nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked()


async def test_a_directory_that_comes_late_or_again_is_watched_beside_another_one(tmp_path: Path) -> None:
    (tmp_path / "always").mkdir()
    places = {name: [Watched(str(tmp_path / name))] for name in ("always", "comes")}
    seen: set[tuple[str, str]] = set()

    def sees_a_save_in(name: str) -> bool:  # it need not be watched yet
        file = tmp_path / name / "a.py"
        file.write_text("x")
        return (name, str(file)) in seen

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, places, lambda *save: seen.add(save), lambda _: 2e12)
        await until(lambda: sees_a_save_in("always"))
        for _ in ("late", "again"):
            (tmp_path / "comes").mkdir()
            await until(lambda: sees_a_save_in("comes"))
            seen.clear()
            rmtree(tmp_path / "comes")
            await until(lambda: ("comes", str(tmp_path / "comes")) in seen)
            seen.clear()
        nursery.cancel_scope.cancel()


def test_of_many_files_some_are_named() -> None:
    assert named(["/a/b.py", "/c/b.py", "/d.py"]) == "b.py, d.py"
    assert named([f"{__file__}.sedX7k", __file__]) == "test_watching.py"
    assert named([f"/{number}" for number in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_what_is_saved_twice_in_a_second_is_not_taken_from_the_bytecode_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    source, at = tmp_path / "words.py", (1_000_000_000, 1_000_000_000)

    def word(saved: str) -> str:
        source.write_text(f"WORD = {saved!r}\n")
        os.utime(source, at)
        code = SourceFileLoader("words", str(source)).get_code("words")
        assert code is not None
        return str(code.co_consts[0])

    assert word("one") == "one"
    assert word("two") == "one", "Python goes by the second and the size"
    forget_bytecode([str(source)])
    assert word("two") == "two"
