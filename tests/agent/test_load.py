"""Finding the agent in a file or module, and saying what is wrong in the author's own terms."""

import os
import re
import sys
import textwrap
import time

import pytest
import trio

from agentmgr.agent.adapt import adapt
from agentmgr.agent.host import make_agent
from agentmgr.agent.load import load
from agentmgr.errors import AgentFileNotFound, AgentLoadError
from agentmgr.models import Runtime


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.fixture
def write(tmp_path):
    def write(text, name="my_agent.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return str(tmp_path / name)

    return write


FACTORY = """
    def create_agent():
        async def answer(message):
            return "made"
        return answer

    def other():
        async def answer(message):
            return "other"
        return answer

    async def itself(message):
        return "itself"

    class Agent:
        def on_message(self, session, message):
            return "class"
"""


async def made(path):
    async with trio.open_nursery() as nursery:
        try:
            return await make_agent(load(path), Runtime.AUTO, nursery)
        except AgentLoadError as error:
            nursery.cancel_scope.cancel()  # a runtime may have been opened already
            return error


async def answer_of(path):
    agent = await made(path)
    return await agent.on_message(None, "hi")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("", "made"),
        (":create_agent", "made"),
        (":other", "other"),
        (":itself", "itself"),
        (":Agent", "class"),
    ],
)
async def test_a_name_after_the_colon_is_a_factory_a_class_or_the_agent_itself(write, name, answer):
    assert await answer_of(write(FACTORY) + name) == answer


async def test_a_module_is_found_by_its_dotted_name(write, tmp_path):
    write(FACTORY, "some_agent_module.py")
    sys.path.insert(0, str(tmp_path))
    assert await answer_of("some_agent_module:other") == "other"


@pytest.mark.parametrize(
    ("text", "last_line"),
    [
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("\n\nx = 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def create_agent(:\n", "SyntaxError: invalid syntax"),
    ],
)
def test_the_traceback_of_a_module_begins_at_the_authors_file(write, tmp_path, monkeypatch, text, last_line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_package").mkdir()
    path = write(text, "a_package/broken.py")
    with pytest.raises(AgentLoadError) as caught:
        load("a_package.broken:make")
    lines = caught.value.message.splitlines()
    assert lines[0] == "importing a_package.broken failed:"
    assert next(line for line in lines if line.startswith("  File")).startswith(f'  File "{path}", line ')
    assert lines[-1] == last_line
    assert "importlib" not in caught.value.message


def test_a_module_that_is_not_there_is_said_in_two_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AgentLoadError) as caught:
        load("no_such_package.agents:make")
    assert caught.value.message == (
        "importing no_such_package.agents failed:\nModuleNotFoundError: No module named 'no_such_package'"
    )


async def test_create_agent_may_be_async(write):
    path = write("""
        import trio

        async def create_agent():
            await trio.lowlevel.checkpoint()
            return answer

        async def answer(message):
            return "async"
    """)
    assert await answer_of(path) == "async"


async def test_a_variable_named_agent_will_do(write):
    assert await answer_of(write("async def agent(message):\n    return 'variable'")) == "variable"


async def test_a_file_imports_its_neighbours_and_may_be_named_like_a_library(write):
    write("WORD = 'neighbour'", "my_neighbour.py")
    path = write("import my_neighbour\nasync def agent(m):\n    return my_neighbour.WORD", "json.py")
    assert await answer_of(path) == "neighbour"


async def test_what_is_saved_twice_in_a_second_runs_as_it_was_saved_last(write, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "parts").mkdir()
    saved_at = int(time.time())
    for word in ("one", "two"):
        files = [
            write(f"from parts import beside\nasync def agent(m):\n    return '{word} ' + beside.WORD"),
            write(f"WORD = '{word}'", "parts/beside.py"),
        ]
        for file in files:
            os.utime(file, (saved_at, saved_at))
        for module in ("parts", "parts.beside", "my_agent"):
            sys.modules.pop(module, None)
        assert await answer_of(files[0]) == f"{word} {word}"
    os.utime(files[1], (1, 1))  # what was saved long ago is compiled once
    for module in ("parts", "parts.beside"):
        del sys.modules[module]
    assert await answer_of(files[0]) == "two two"
    assert list((tmp_path / "parts").glob("__pycache__/beside.*.pyc"))


@pytest.mark.parametrize("value", list(Runtime))
def test_a_file_says_which_runtime_it_needs(write, value):
    assert load(write(f"RUNTIME = {str(value)!r}\nagent = print")).runtime is value


@pytest.mark.parametrize(
    ("text", "runtime"),
    [
        ("import asyncio", Runtime.ASYNCIO),
        ("import asyncio.subprocess as s", Runtime.ASYNCIO),
        ("from asyncio import gather", Runtime.ASYNCIO),
        ("import asyncio\nimport trio", Runtime.TRIO),
        ("from trio import sleep", Runtime.TRIO),
        ("import asyncio\nfrom agentmgr.client import open_session", Runtime.TRIO),
        ("from agentmgr.client.aio import open_session", Runtime.ASYNCIO),
        ("import asyncio\nfrom agentmgr.client import aio", Runtime.ASYNCIO),
        ("import asyncio\nRUNTIME = 'trio'", Runtime.TRIO),
        ("import json", Runtime.AUTO),
        ("import agents", Runtime.AUTO),  # a package of the author's own
    ],
)
def test_a_file_shows_by_its_imports_which_runtime_it_needs(write, text, runtime):
    write("", "agents.py")
    assert load(write(f"{text}\nagent = print", "by_imports.py")).runtime is runtime


class OfAFramework:
    def run(self, *, text):
        """Not as this package would call it."""


def test_what_no_adapter_knows_is_refused_at_once_with_a_way_to_wrap_it():
    with pytest.raises(AgentLoadError, match=r"an object of the class .*OfAFramework") as refused:
        adapt(OfAFramework())
    example = refused.value.message.partition("calls it:")[2]
    assert "theirs.its_method(str(message))" in example
    compile(textwrap.dedent(example), "example", "exec")


def test_a_missing_file_is_named_with_its_whole_path(tmp_path):
    with pytest.raises(AgentFileNotFound, match=f"Agent factory file not found: {tmp_path}/nope.py"):
        load(f"{tmp_path}/nope.py")


@pytest.mark.parametrize(
    ("text", "last_lines"),
    [
        ("def create_agent(:\n", ["def create_agent(:", "SyntaxError"]),
        ("import no_such_package\n", ["import no_such_package", "ModuleNotFoundError"]),
        ("\n\nx = 1 / 0\n", ["line 3", "x = 1 / 0", "ZeroDivisionError: division by zero"]),
        ("import sys\nsys.exit('no key')\n", ["sys.exit('no key')", "SystemExit: no key"]),
        ("def create_agent():\n    raise KeyError('API_KEY')\n", ["raise KeyError('API_KEY')", "KeyError"]),
        ("async def create_agent():\n    raise KeyError('API_KEY')\n", ["raise KeyError('API_KEY')"]),
        ("class Fatal(BaseException): pass\nraise Fatal('at import')\n", ["raise Fatal", "Fatal: at import"]),
        ("raise KeyboardInterrupt\n", ["raise KeyboardInterrupt", "KeyboardInterrupt"]),
        (
            "import asyncio\nRUNTIME = 'trio'\n"
            "def create_agent():\n    raise asyncio.CancelledError('by hand')\n",
            ["raise asyncio.CancelledError", "CancelledError: by hand"],
        ),
        (
            "class Mute(Exception):\n    def __str__(self): return self.no\ndef create_agent(): raise Mute\n",
            ["def create_agent(): raise Mute", "Mute: <exception str() failed>"],
        ),
        (
            "class Lazy:\n    def __getattr__(self, name): raise OSError('not now')\nagent = Lazy()\n",
            ["cannot be used", "OSError: not now"],
        ),
        (
            "def __getattr__(name):\n    raise OSError(name)\n",
            ["agent.py cannot be used", "OSError: RUNTIME"],
        ),
    ],
)
async def test_what_the_author_wrote_is_shown_and_nothing_of_ours(write, text, last_lines):
    path = write(text)
    error = await made(path)
    for line in last_lines:
        assert line in error.message
    assert "agentmgr/agent" not in error.message
    assert "importlib" not in error.message


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_the_traceback_of_a_factory_begins_at_the_authors_file(write, loop, kind):
    path = write(f"RUNTIME = '{loop}'\n{kind} create_agent():\n    raise OSError('no database')\n")
    error = await made(path)
    first = next(line for line in error.message.splitlines() if line.startswith("  File"))
    assert first.startswith(f'  File "{path}", line 3')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def foo(): pass\nclass Bar: pass", r"has no create_agent\(\) and no variable `agent`.*foo, Bar"),
        ("X = 1", "it defines no function and no class"),
        ("RUNTIME = 'gevent'\nagent = print", '"trio", "asyncio" or "auto"'),
        ("def create_agent(): pass", "the factory returned None, which cannot answer a message"),
        ("def create_agent(): return 5", "the factory returned a int"),
        ("agent = lambda: 'x'", "the factory returned a str"),
        ("def create_agent(): return lambda: 'x'", r"cannot answer a message: write it as f\(message\)"),
        ("def agent(message, session, key): pass", "agent.* cannot answer a message"),
        ("class A: pass\ndef create_agent(): return A", r"the class A: return an object of it, A\(\)"),
        (
            "class A:\n async def on_message(self, message): pass\nagent = A",
            r"A.on_message\(message\) is called as on_message\(session, message\): write it as",
        ),
        ("class A:\n def on_message(self, message, session): pass\nagent = A", "on_message"),
        (
            "class A:\n def on_message(self, s, m): pass\n def on_session_end(self): pass\nagent = A",
            r"write it as on_session_end\(self, session\)",
        ),
        ("class A:\n async def serve(self): pass\nagent = A", r"write it as serve\(self, websocket\)"),
        (
            "import asyncio\ndef create_agent():\n loop = asyncio.get_running_loop()\n"
            " loop.run_until_complete(loop.create_future())",
            "an event loop runs here already: `await` it in an `async def`",
        ),
    ],
)
async def test_a_file_without_an_agent_is_told_what_to_do(write, text, message):
    assert re.search(message, (await made(write(text))).message)


def test_a_name_that_is_not_there_is_told_what_is(write):
    with pytest.raises(AgentLoadError, match="has no 'nope'; it defines create_agent, other, itself, Agent"):
        load(write(FACTORY) + ":nope")
