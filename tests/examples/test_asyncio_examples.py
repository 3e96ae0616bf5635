"""The examples for asyncio: FastAPI, as uvicorn runs it, and a notebook, as Jupyter runs its cells."""

import ast
import asyncio
import inspect
import json
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.examples.test_manager_examples import EXAMPLES, ask, running

KNOWS = "I know these files: notes.txt, todo.txt. Say: delete NAME."


@pytest.fixture
def streaming(tmp_path):
    """`examples/streaming_agent.py`, at the addresses that the examples take from the environment."""
    words = ("agentmgr", "run", EXAMPLES / "streaming_agent.py", "--proxy-port", "0", "--api-port", "0")
    with running(tmp_path, *words, pattern=r"(?s)(ws://.*)/console/") as said:
        yield {"AGENT_URL": said.split()[0], "MANAGER_URL": said.split()[-1]}


def serving(directory, example, **environment):
    given = (f"{name}={value}" for name, value in environment.items())
    words = (
        "env",
        *given,
        sys.executable,
        "-m",
        "uvicorn",
        "--app-dir",
        EXAMPLES,
        f"{Path(example).stem}:app",
        "--port",
        "0",
    )
    return running(directory, *words, pattern=r"running on (http://\S+)")


def get(url, **query):
    with urllib.request.urlopen(f"{url}?{urlencode(query)}", timeout=60) as answer:
        return answer.read().decode()


def test_fastapi_talks_to_an_agent_and_to_a_manager(tmp_path, streaming):
    with serving(tmp_path, "fastapi_app.py", **streaming) as url:
        first = json.loads(get(f"{url}/ask", text="hello"))
        assert first.pop("answer").strip() == KNOWS
        again = json.loads(get(f"{url}/ask", text="hello", **first))
        assert again["session_id"] == first["session_id"]
        assert again["last_seq"] > first["last_seq"]
        assert get(f"{url}/stream", text="hello").strip() == KNOWS
        assert json.loads(get(f"{url}/services")) == {"streaming_agent": "running"}


def test_fastapi_has_a_manager_in_a_thread(tmp_path):
    for _ in range(2):  # the second run finds what the first one registered
        with serving(tmp_path, "fastapi_manager.py") as url:
            assert ask(json.loads(get(url))["gateway"]) == "You said: hello"  # which waits for the agent
            assert json.loads(get(url))["services"] == {"echo": "running"}


def test_a_notebook_talks_to_an_agent_from_cell_to_cell(streaming, monkeypatch, capsys):
    """A cell is a task of a loop that lives on between them; the value of its last line is shown."""
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = []
    names = {"shown": shown}
    for name, value in streaming.items():
        monkeypatch.setenv(name, value)

    async def run(code):
        tree = ast.parse(code)
        if isinstance(last := tree.body[-1], ast.Expr):
            tree.body[-1:] = ast.parse(f"shown.append({ast.unparse(last.value)})").body
        compiled = compile(tree, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if inspect.isawaitable(made := eval(compiled, names)):
            await made

    with asyncio.Runner() as runner:
        for cell in cells:
            runner.run(run(cell))
    answer, services, left = shown
    assert answer.strip() == KNOWS
    assert services == ["streaming_agent"]
    assert left is None
    assert "agent.partial_answer I" in capsys.readouterr().out
