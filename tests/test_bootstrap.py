"""Modules of the user's never stand in for those that our processes import, and his agents find their own."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from agentmgr import bootstrap
from agentmgr.client.transport import CannotConnect
from agentmgr.testing.agents import bare_client

NAMES = """
__future__ agentmgr asyncio attrs calendar concurrent contextlib email enum logging outcome queue random re
secrets ssl stringprep sysconfig tempfile token trio trio_websocket types typing
""".split()  # noqa: SIM905


@pytest.fixture
def planted(tmp_path):
    """A directory of files with the names of modules; each leaves a trace when it is run."""
    directory = tmp_path / "planted"
    directory.mkdir()
    for name in NAMES:
        trace = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})"
        (directory / f"{name}.py").write_text(f"{trace}\nraise SystemExit('planted: {name}')\n")
    yield directory
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def variables(**more):
    return bootstrap.environment({**os.environ, "AGENTMGR_INSTANCE_TOKEN": "s3cret", **more})


@asynccontextmanager
async def host(*words, cwd, log, **environment):
    """A hosted agent, started as the supervisor does; yields a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("ab") as output:
        process = await trio.lowlevel.open_process(
            [*bootstrap.words("agentmgr.agent"), *words, "--fd", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            cwd=cwd,
            env=variables(**environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
            with trio.fail_after(120):
                while not await answers(url):
                    pass
                async with bare_client(url) as client:
                    yield client
        finally:
            process.kill()
            await process.wait()


async def answers(url):
    """Whether it does within the time that a client waits."""
    try:
        async with bare_client(url):
            return True
    except* CannotConnect:
        pass
    return False


async def answer(client, text="hi"):
    return (await client.ask(text))["content"]


@pytest.mark.parametrize("where", ["cwd", "PYTHONPATH"])
def test_a_command_of_ours_imports_none_of_them(planted, tmp_path, where):
    environment = {"PYTHONPATH": str(planted)} if where == "PYTHONPATH" else {}
    done = subprocess.run(
        [*bootstrap.words("agentmgr"), "list", "--format", "json", "--db-path", str(tmp_path / "a.db")],
        cwd=planted if where == "cwd" else tmp_path,
        env=variables(**environment),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_neither_does_python_m_agentmgr(planted, tmp_path):
    (planted / "agentmgr.py").unlink()  # that is asked for by name
    (planted / "contextlib.py").unlink()  # imported by runpy itself, before our first line
    for name in ("__future__", "enum", "re", "types", "typing"):
        (planted / f"{name}.py").unlink()
    words = [
        sys.executable,
        "-m",
        "agentmgr",
        "list",
        "--format",
        "json",
        "--db-path",
        str(tmp_path / "a.db"),
    ]
    done = subprocess.run(words, cwd=planted, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("runtime", ["trio", "asyncio"])
@pytest.mark.parametrize("where", ["beside", "cwd", "PYTHONPATH"])
async def test_a_host_imports_none_of_them_and_names_them_in_its_log(planted, tmp_path, where, runtime):
    agent = (planted if where == "beside" else tmp_path) / "my_agent.py"
    agent.write_text("async def agent(message):\n    return 'mine ' + message\n")
    environment = {"PYTHONPATH": str(planted)} if where == "PYTHONPATH" else {}
    cwd, log = planted if where == "cwd" else tmp_path, tmp_path / "log"
    async with host(str(agent), "--runtime", runtime, cwd=cwd, log=log, **environment) as client:
        assert await answer(client) == "mine hi"
    said = log.read_text()
    assert f"{planted}/secrets.py has the name of a module of the standard library, which `import s" in said
    assert f"{planted}/trio.py has the name of a module that agentmgr uses" in said
    assert (
        f"{planted}/asyncio.py has the name of a module of the standard library, and is imported in" in said
    )
    assert "my_agent.py has" not in said


async def test_a_clone_of_agentmgr_in_the_current_directory_is_no_file_of_an_authors(tmp_path):
    clone, agent, log = tmp_path / "agentmgr", tmp_path / "my_agent.py", tmp_path / "log"
    shutil.copytree(Path(bootstrap.__file__).parent, clone, ignore=shutil.ignore_patterns("__pycache__"))
    agent.write_text("async def agent(message):\n    return 'mine ' + message\n")
    async with host(str(agent), cwd=tmp_path, log=log) as client:
        assert await answer(client) == "mine hi"
    assert "has the name of" not in log.read_text()


@pytest.mark.parametrize("name", ["agentmgr", "secrets", "token", "trio", "uuid"])
async def test_an_agent_file_may_have_the_name_of_any_module(tmp_path, name):
    agent = tmp_path / f"{name}.py"
    agent.write_text("async def agent(message):\n    return 'mine ' + message\n")
    async with host(str(agent), cwd=tmp_path, log=tmp_path / "log") as client:
        assert await answer(client) == "mine hi"


async def test_an_agent_that_cannot_load_for_such_a_name_is_told_so_in_the_first_line(tmp_path):
    (tmp_path / "secrets.py").write_text("KEY = 'x'\n")
    (tmp_path / "queue.py").write_text("")  # a clash that has nothing to do with it
    (tmp_path / "my_agent.py").write_text("from secrets import KEY\n")
    done = subprocess.run(
        [*bootstrap.words("agentmgr.agent"), "my_agent.py"],
        cwd=tmp_path, env=variables(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 78
    reason = next(line for line in done.stderr.splitlines() if line.startswith("agentmgr: "))
    assert f"importing my_agent.py failed; {tmp_path}/secrets.py has the name of a module of the" in reason
    assert reason.endswith("rename the file:")
    assert "queue" not in reason


PATHS = """
import os, sys
from only_beside import WORD as beside
from only_in_cwd import WORD as cwd
from only_in_path import WORD as path

async def agent(message):
    return [beside, cwd, path, os.environ.get("PYTHONPATH"), "AGENTMGR_PYTHONPATH" in os.environ]
"""


async def test_an_agent_finds_its_neighbours_then_its_directory_then_pythonpath(tmp_path):
    places = {name: tmp_path / name for name in ("beside", "in_cwd", "in_path")}
    for number, (name, place) in enumerate(places.items()):
        place.mkdir()
        for later in list(places)[
            : number + 1
        ]:  # each has the names of those before, which are not to be found
            (place / f"only_{later}.py").write_text(f"WORD = {name!r}\n")
    (places["beside"] / "my_agent.py").write_text(PATHS)
    (places["in_path"] / "sitecustomize.py").write_text("print('customized')\n")
    path = str(places["in_path"])
    words, log = [str(places["beside"] / "my_agent.py")], tmp_path / "log"
    async with host(*words, cwd=places["in_cwd"], log=log, PYTHONPATH=path) as client:
        assert await answer(client) == ["beside", "in_cwd", "in_path", path, False]
    assert "customized\n" in log.read_text()


POOL = """
import multiprocessing, os
from dataclasses import dataclass

@dataclass
class Number:
    value: int

def doubled(number):
    return Number(number.value * 2)

def agent(message):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(doubled, [Number(21)])[0].value
"""


async def test_an_agents_worker_processes_find_its_functions(tmp_path):
    (tmp_path / "my_agent.py").write_text(POOL)
    (tmp_path / "secrets.py").write_text("raise SystemExit('planted')")
    async with host("my_agent.py", cwd=tmp_path, log=tmp_path / "log") as client:
        assert await answer(client) == 42


def test_an_empty_pythonpath_is_none_and_an_empty_word_in_it_is_the_current_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    assert bootstrap.python_path() == []
    assert bootstrap.environment({"PYTHONPATH": "", "A": "1"}) == {"A": "1"}
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}rel{os.pathsep}/abs")
    assert bootstrap.python_path() == [str(tmp_path), str(tmp_path / "rel"), "/abs"]


@pytest.mark.parametrize(
    ("command", "where"), [("script", "cwd"), ("script", "PYTHONPATH"), ("ours", "PYTHONPATH")]
)
def test_the_command_and_what_it_starts_in_the_background(planted, tmp_path, command, where):
    """The console script, and a manager that starts others, with a gateway worker."""
    agent = planted / "my_agent.py"
    agent.write_text("async def agent(message):\n    return 'mine ' + message\n")
    program = [str(Path(sys.executable).with_name("agentmgr"))]
    environment = {**os.environ, "AGENTMGR_DB": str(tmp_path / "a.db"), "AGENTMGR_PROXY_WORKERS": "1"}
    if where == "PYTHONPATH":
        environment["PYTHONPATH"] = str(planted)
        if command == "ours":
            program, environment = bootstrap.words("agentmgr"), bootstrap.environment(environment)
        else:  # imported by the script that pip writes, before our first line
            for name in ("__future__", "agentmgr", "enum", "re", "types"):
                (planted / f"{name}.py").unlink()

    def run(*words):
        done = subprocess.run(
            [*program, *words], cwd=planted, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        run("register", "mine", "my_agent.py", "--auto-start")
        assert run("chat", "mine", "--once", "hi").strip() == "mine hi"
    finally:
        run("shutdown")


def test_a_clone_that_was_not_installed_is_run_whole(tmp_path):
    """Also what it starts, though another one is installed; and its neighbours are no modules of ours."""
    clone = tmp_path / "clone"
    shutil.copytree(Path(bootstrap.__file__).parent, clone / "agentmgr")
    (clone / "secrets.py").write_text("raise SystemExit('planted')\n")
    (clone / "agentmgr" / "where").mkdir()
    code = "import agentmgr, secrets\ndef main():\n    print(agentmgr.__file__)\n"
    (clone / "agentmgr" / "where" / "__main__.py").write_text(code)
    words = [sys.executable, "-P", str(clone / "agentmgr" / "bootstrap.py"), "agentmgr.where"]
    done = subprocess.run(words, cwd=tmp_path, env=variables(), capture_output=True, text=True)
    assert done.stdout.strip() == str(clone / "agentmgr" / "__init__.py"), done.stderr
    words = [sys.executable, "-m", "agentmgr", "list", "--format", "json", "--db-path", "a.db"]
    done = subprocess.run(words, cwd=clone, env=variables(), capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
