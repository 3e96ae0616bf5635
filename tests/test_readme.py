"""The README is true: its blocks run, what it names exists, and no command or setting is missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import asyncclick as click
import pytest
from attrs import fields

from agentmgr.cli.group import COMMANDS
from agentmgr.settings import Settings, environment_name
from agentmgr.supervisor.addresses import Ports
from agentmgr.websocket.refusal import WHAT_HELPS, RefusalCode
from tests.cli.test_usage import every_command
from tests.processes import end_all_in

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
AGENT = next(text for kind, text in BLOCKS if text.startswith("# my_agent.py"))


@pytest.mark.parametrize(("kind", "text"), BLOCKS, ids=[text.splitlines()[-1][:40] for _, text in BLOCKS])
def test_each_block_runs(kind, text, tmp_path):
    if "pip install" in text or ".venv/" in text:
        pytest.skip("it installs the package or uses that installation; .ci/run does that")
    (tmp_path / "my_agent.py").write_text(AGENT)
    ports = Ports()
    text = re.sub(r"\b9090\b", str(ports.lend("127.0.0.1", None)), text)
    cluster_port = str(ports.lend("127.0.0.1", None))
    text = text.replace("9443", cluster_port)
    text = re.sub(r"^agentmgr (daemon|node) .*", in_the_background, text, flags=re.MULTILINE)
    words = {"sh": ["bash", "-euxc", text], "python": [sys.executable, "-uc", text]}[kind]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AGENTMGR_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["AGENTMGR_CLUSTER_PORT"] = cluster_port
    try:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout
    finally:
        end_all_in(tmp_path)
    if "Supervisor" in text:
        assert "error 2 " in done.stdout


def in_the_background(command):
    """Where a reader gives it a terminal of its own: it serves until it is ended."""
    return f"{command[0]} > said 2>&1 &\nuntil grep -qE '^(gateway at|node )' said; do sleep 0.1; done"


def test_every_command_that_it_names_exists():
    named = set(re.findall(r"agentmgr ([a-z][a-z-]*)(?=[ `\n])", README)) - {"import"}
    assert len(named) > 20
    assert named <= set(COMMANDS)


def test_a_command_shows_every_setting_and_every_one_that_the_readme_names_exists():
    settings = {environment_name(attribute.name) for attribute in fields(Settings)}
    shown = subprocess.check_output([sys.executable, "-m", "agentmgr", "settings"], text=True)
    assert set(re.findall(r"AGENTMGR_[A-Z_]+", shown)) == settings
    others = {f"AGENTMGR_{name}" for name in (
        "CONFIG", "TRUST", "GATEWAY", "TOKEN", "SERVICE", "INSTANCE_ID", "INSTANCE_TOKEN",
    )}  # fmt: skip
    assert others <= set(re.findall(r"AGENTMGR_[A-Z_]+", README)) <= settings | others
    source = "".join(path.read_text() for path in (Path(__file__).parents[1] / "agentmgr").rglob("*.py"))
    assert all(name in source for name in others)


def test_of_every_refusal_of_the_gateway_it_is_said_what_helps():
    package = Path(__file__).parents[1] / "agentmgr"
    files = [*(package / "proxy").rglob("*.py"), package / "websocket" / "head.py"]
    source = "".join(path.read_text() for path in files)
    raised = {RefusalCode[name] for name in re.findall(r"\bRefusalCode\.([A-Z_]+)", source)}
    assert set(WHAT_HELPS) == raised - {
        RefusalCode.BACKEND_REFUSED
    }  # the client gets the instance's own answer


@pytest.mark.parametrize(("name", "command"), every_command())
def test_help_says_what_each_option_means(name, command):
    """`--help` is the reference of the options: a table in the README would be a second one."""
    text = command.get_help(click.Context(command, info_name=f"agentmgr {name}", **command.context_settings))
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, option.name
            assert option.opts[-1] in text


def test_every_option_that_the_readme_names_exists():
    options = [p for _, command in every_command() for p in command.params if isinstance(p, click.Option)]
    known = {word for option in options for word in [*option.opts, *option.secondary_opts]}
    spans = re.findall(r"`([^`\n]*)`", README)
    named = {word for span in spans for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
    assert len(named) > 20
    assert named <= known | {"--help", "--version"}


def test_every_example_is_there():
    examples = Path(__file__).parents[1] / "examples"
    files = {path.name + "/" * path.is_dir() for path in examples.iterdir() if path.name != "__pycache__"}
    section = README.partition("\n## Examples\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([\w.-]+/?)`", section)) - {"examples/"} == files
