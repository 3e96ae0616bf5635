"""The examples beside the agents, as their docstrings say to run them: real processes, no network."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from websockets.sync.client import connect
from websockets.sync.server import serve

from tests.conditions import heard
from tests.ports import own_port
from tests.processes import end_all_in, working_in

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("AGENTMGR_")} | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONUNBUFFERED": "1",
}


@pytest.fixture(autouse=True)
def _commands_fork(commands_fork):
    """`agentmgr`, and managers in the background; what is an example's own is a process of its own."""


@contextmanager
def running(directory, *words, pattern):
    """The example, from the moment that it prints `pattern`, of which the first group is yielded."""
    process = subprocess.Popen(
        words, cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        try:
            said = ""
            while not (found := re.search(pattern, said)):
                line = process.stdout.readline()
                assert line, said
                said += line
            yield found[1]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                rest, _ = process.communicate(timeout=60)
            finally:
                process.kill()
        assert "Traceback" not in rest
        assert process.returncode == 0, rest


def run(directory, *words):
    done = subprocess.run(
        words, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask(url, text="hello", **options):
    with connect(url, proxy=None, **options) as client:
        client.send(text)
        return heard(client)


def test_bilingual_support_by_query_header_and_path(tmp_path):
    words = (sys.executable, EXAMPLES / "bilingual/support.py", "0")
    for _ in range(2):  # the second run finds what the first one registered
        with running(tmp_path, *words, pattern=r"(ws://\S+)") as url:
            assert ask(f"{url}/?lang=zh") == "您好！您说的是：hello"
            assert ask(f"{url}/zh").startswith("您好")
            assert ask(url, additional_headers={"Accept-Language": "zh-CN,en"}).startswith("您好")
            assert ask(f"{url}/?lang=en") == ask(url) == "Hello! You said: hello"


def test_three_services_share_one_address(tmp_path):
    script = EXAMPLES / "balanced/balanced.sh"
    try:
        with running(tmp_path, "sh", script, "0", pattern=r"gateway at (\S+)") as url:
            assert {ask(url) for _ in range(3)} == {f"ai-service-{i} heard: hello" for i in (1, 2, 3)}
    finally:
        run(tmp_path, "agentmgr", "shutdown")


def test_services_on_three_machines(tmp_path):
    gateway, manager = own_port(), own_port()
    words = ("--port", str(gateway), "--cluster-port", str(manager))
    example = (sys.executable, EXAMPLES / "cluster/cluster.py", *words)
    there = tmp_path / "cluster-demo"
    try:
        found = re.compile(r"answered in (.+?)(?:/bundles/\w+)?, GPUs: none")
        for again in (False, True):  # the second run finds the nodes of the first one
            with running(tmp_path, *example, pattern=r"clients connect to (ws://\S+)") as url:
                places = {found.search(ask(url))[1] for _ in range(3)}
                nodes = {str(EXAMPLES / "cluster"), f"{there}/node-b", f"{there}/node-c"}
                # Where a manager that comes back starts them depends on which nodes have come back by then.
                assert places <= nodes if again else places == nodes
                # By the gateway of the one node to the other one.
                assert f"{there}/node-b" in ask(f"ws://127.0.0.3:{gateway}/services/near")
            assert working_in(tmp_path) == []
    finally:
        end_all_in(tmp_path)


def test_services_declared_in_a_file(tmp_path):
    apply = ("agentmgr", "apply", EXAMPLES / "services.toml")
    try:
        run(tmp_path, *apply)
        assert run(tmp_path, *apply) == "nothing to do\n"
        services = {s["name"]: s for s in json.loads(run(tmp_path, "agentmgr", "list", "--format", "json"))}
        assert {name: service["status"] for name, service in services.items()} == {
            "chinese-support": "running", "english-support": "running", "echo": "stopped",
            "files": "running", "prepare": "completed", "nightly-report": "scheduled",
        }  # fmt: skip
        with running(tmp_path, "agentmgr", "proxy", "--port", "0", pattern=r"(ws://\S+)") as url:
            assert ask(f"{url}/?lang=zh").startswith("您好")
            assert ask(url).startswith("Hello")
    finally:
        run(tmp_path, "agentmgr", "shutdown")


def test_the_guides_python_examples(tmp_path):
    (tmp_path / "my_agent.py").write_bytes((EXAMPLES / "echo_agent.py").read_bytes())
    for _ in range(2):
        said = run(tmp_path, sys.executable, EXAMPLES / "guide_manager.py")
        assert said.splitlines() == [
            "Service health: healthy",
            "Running services: 1",
            "Active connections: 0",
            "Healthy services: 1",
        ]


@pytest.mark.parametrize(
    ("name", "words"), [("Node", ["node", "node/echo.js", "{port}"]), ("Perl", ["perl", "perl/echo.pl"])]
)
def test_a_program_in_another_language_is_a_service(tmp_path, name, words):
    if shutil.which(words[0]) is None:
        pytest.skip(f"this machine has no {words[0]}")
    program, script, *rest = words
    try:
        command = (program, EXAMPLES / script, *rest)
        run(tmp_path, "agentmgr", "register", "echo", "--auto-start", "--", *command)
        service = json.loads(run(tmp_path, "agentmgr", "status", "echo", "--format", "json"))
        assert ask(service["endpoint"]) == f"{name} heard: hello"
        assert run(tmp_path, "agentmgr", "chat", "echo", "--once", "hello") == f"{name} heard: hello\n"
        assert ask(service["endpoint"], "é" * 5000) == f"{name} heard: " + "é" * 5000
    finally:
        run(tmp_path, "agentmgr", "shutdown")


def test_a_factory_in_a_package_is_a_service(tmp_path):
    options = ("--cwd", EXAMPLES / "module", "--env", "GREETING=Howdy")
    try:
        run(tmp_path, "agentmgr", "register", "x", "greeter.agents:friendly", *options, "--auto-start")
        service = json.loads(run(tmp_path, "agentmgr", "status", "x", "--format", "json"))
        assert ask(service["endpoint"], "partner") == "Howdy, partner!"
    finally:
        run(tmp_path, "agentmgr", "shutdown")


def test_a_supervisor_within_a_program(tmp_path):
    said = run(tmp_path, sys.executable, EXAMPLES / "embed_supervisor.py").splitlines()
    assert said[:5] == ["beat"] * 5
    assert said[-1] == "running, restarted 1 time(s)"


@pytest.mark.parametrize("example", ["embed_gateway.py", "websocket_app.py", "quart_websocket.py"])
def test_a_gateway_within_a_program(tmp_path, example):
    def backend(name):
        def answer(connection):
            for message in connection:
                connection.send(f"{name}: {message}")

        return serve(answer, "localhost", 0)

    with backend("one") as one, backend("two") as two:
        threads = [Thread(target=server.serve_forever) for server in (one, two)]
        for thread in threads:
            thread.start()
        addresses = [f"localhost:{server.socket.getsockname()[1]}" for server in (one, two)]
        words = (sys.executable, EXAMPLES / example, *addresses)
        try:
            with running(tmp_path, *words, pattern=r"(ws://\S+)") as url:
                assert {ask(url), ask(url)} == {"one: hello", "two: hello"}
        finally:
            for server, thread in zip((one, two), threads, strict=True):
                server.shutdown()
                thread.join()


def test_a_quart_application_mounts_the_api(tmp_path):
    def get(url):
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read().decode()

    words = (sys.executable, EXAMPLES / "quart_app.py", "0")
    with running(tmp_path, *words, pattern=r"open http://localhost:(\d+)") as port:
        assert get(f"http://localhost:{port}/") == "my own page\n"
        assert json.loads(get(f"http://localhost:{port}/api/v1/services"))["items"] == []


@pytest.mark.parametrize(
    ("name", "count"), [("test_your_own_agent.py", 3), ("test_your_own_application.py", 2)]
)
def test_tests_of_ones_own(tmp_path, name, count):
    (tmp_path / name).write_bytes((EXAMPLES / name).read_bytes())
    words = (sys.executable, "-m", "pytest", "-n", "0", "-o", "trio_mode=true", name)
    assert f"{count} passed" in run(tmp_path, *words)


def test_each_example_is_run_by_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    for path in EXAMPLES.iterdir():
        if path.suffix == ".png":
            continue  # a picture, which .ci/picture makes
        assert path.name == "__pycache__" or path.name in tests or f"{path.name}/" in tests, path.name
