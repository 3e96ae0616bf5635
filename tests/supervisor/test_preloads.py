"""An agent's next start finds its packages imported: not its own files, and nothing that is unsafe or old."""

from __future__ import annotations

import json
import os
import signal
import site
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentmgr.core.preloading import WORTH_MODULES
from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec
from agentmgr.supervisor import Supervisor, fork_server
from tests.conditions import until

AGENT = """
import json, os, sys
import {package}, mine

facts = {{"pid": os.getpid(), "package": {package}.IMPORTED_BY, "mine": mine.IMPORTED_BY,
         "set": os.environ.get("SET_BY_PACKAGE"), "of the service": os.environ.get("OF_THE_SERVICE")}}

def create_agent():
    with open(os.environ["FACTS"], "w") as file:
        json.dump(facts, file)
    async def answer(message):
        return message
    return answer
"""
IMPORTED_BY = "import os\nIMPORTED_BY = os.getpid()\n"


class Environment:
    """A virtual environment, packages of many modules in it, and agents that import them and files beside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._home = directory / "venv"
        self.packages = self._home / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
        self.packages.mkdir(parents=True)
        (self.packages / "theirs.pth").write_text("\n".join(site.getsitepackages()))
        (self._home / "pyvenv.cfg").write_text(
            f"home = {os.path.dirname(os.path.realpath(sys.executable))}\n"
        )
        (self._home / "bin").mkdir()
        (self._home / "bin" / "python").symlink_to(os.path.realpath(sys.executable))

    def install(self, package: str, text: str = "") -> None:
        home = self.packages / package
        home.mkdir()
        parts = [f"part{number}" for number in range(WORTH_MODULES)]
        for part in parts:
            (home / f"{part}.py").touch()
        imports = f"from . import {', '.join(parts)}\n"
        home.joinpath("__init__.py").write_text(imports + IMPORTED_BY + text)

    def agent(self, package: str = "package", name: str = "svc", **config: Any) -> ServiceSpec:
        home = self.directory / name
        home.mkdir()
        (home / "mine.py").write_text(IMPORTED_BY)
        (home / "agent.py").write_text(AGENT.format(package=package))
        env = {"FACTS": str(home / "facts"), "OF_THE_SERVICE": name}
        config = {"restart_delay": 0, "max_restart_count": 100, "cwd": str(home), "env": env, **config}
        config["python"] = str(self._home / "bin" / "python")
        config["agent_factory_path"] = str(home / "agent.py")
        return ServiceSpec(name, ServiceConfig(**config), desired_status=DesiredStatus.RUNNING)

    def facts(self, spec: ServiceSpec) -> dict[str, Any]:
        """What its latest instance wrote when it was made."""
        found: dict[str, Any] = json.loads(Path(spec.config.env["FACTS"]).read_text())
        return found


@pytest.fixture
def venv(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


async def said(supervisor: Supervisor, spec: ServiceSpec, wanted: Callable[[str], bool]) -> str:
    """What is preloaded for the service, once it is as wanted: a second stage is made beside the rest."""
    await until(lambda: wanted(supervisor.preloaded(spec.service_id) or ""))
    return supervisor.preloaded(spec.service_id) or ""


def stage(text: str) -> int:
    assert " modules preloaded, in process " in text, text
    return int(text.rpartition(" ")[2])


async def again(supervisor: Supervisor, spec: ServiceSpec) -> None:
    await supervisor.stop(spec.service_id, force=True)
    await supervisor.start(spec)


async def test_packages_are_imported_by_a_second_stage_and_the_agents_own_files_by_itself(
    supervisor: Any, venv: Environment, alive: Callable[[int], bool]
) -> None:
    venv.install("package", "os.environ['SET_BY_PACKAGE'] = 'yes'\n")
    spec = venv.agent()
    async with supervisor() as running:
        await running.start(spec)
        first = venv.facts(spec)
        assert first["package"] == first["pid"]
        stage_pid = stage(await said(running, spec, bool))

        await again(running, spec)
        second = venv.facts(spec)
        assert second == {
            "pid": running.instances(spec.service_id)[0].pid,
            "package": stage_pid,
            "mine": second["pid"],
            "set": "yes",
            "of the service": "svc",
        }

        # What is installed meanwhile is found by the next start, and then preloaded anew.
        (venv.packages / "another-1.0.dist-info").mkdir()
        await again(running, spec)
        third = venv.facts(spec)
        assert third["package"] == third["pid"]
        newer = stage(await said(running, spec, lambda text: "in process" in text))
        assert newer != stage_pid

        # So is a stage that was killed; and starts go on meanwhile.
        os.kill(newer, signal.SIGKILL)
        await again(running, spec)
        fourth = venv.facts(spec)
        assert fourth["package"] in (fourth["pid"], newer)
        assert (
            stage(await said(running, spec, lambda text: "in process" in text and str(newer) not in text))
            != newer
        )

        # A file of the author's that has the name of what is preloaded.
        (venv.directory / "svc" / "package.py").write_text(IMPORTED_BY)
        await again(running, spec)
        hidden = venv.facts(spec)
        assert hidden["package"] == hidden["pid"]
        what = await said(running, spec, lambda text: text.startswith("not preloaded"))
        assert f"{venv.directory}/svc/package.py has the name of a module" in what
    assert not alive(stage_pid)


async def test_an_adopted_agent_is_asked_too(supervisor: Any, venv: Environment, recorder: Any) -> None:
    venv.install("package")
    spec = venv.agent()
    async with supervisor(leave_running=True) as running:
        await running.start(spec)
    async with supervisor(adopt=[(spec, list(recorder.records.values()))]) as running:
        in_stage = stage(await said(running, spec, bool))
        await again(running, spec)
        assert venv.facts(spec)["package"] == in_stage


async def test_what_is_unsafe_to_fork_is_not_preloaded_and_status_says_why(
    supervisor: Any, venv: Environment
) -> None:
    thread = "threading.Thread(target=threading.Event().wait, daemon=True)"
    venv.install("threaded", f"import threading\nfor _ in range(3): {thread}.start()\n")
    spec = venv.agent("threaded")
    async with supervisor() as running:
        await running.start(spec)
        assert await said(running, spec, bool) == "not preloaded: threaded started 3 threads"
        await again(running, spec)
        assert venv.facts(spec)["package"] == venv.facts(spec)["pid"]


async def test_the_option_names_modules_or_switches_it_off_and_few_stages_go_to_who_starts_often(
    supervisor: Any, venv: Environment
) -> None:
    venv.install("package")
    venv.install("other")
    off, named, other = (
        venv.agent(name="off", preload="off"),
        venv.agent(name="named", preload="package.part1"),
        venv.agent("other", name="other"),
    )
    async with supervisor(preload_max=1) as running:
        await running.start(off)
        await running.start(named)
        in_stage = stage(await said(running, named, bool))
        await again(running, named)
        assert venv.facts(named)["package"] == in_stage, "a module's package comes with it"

        await running.start(other)
        assert await said(running, other, bool) == "not preloaded: preload_max is reached (1)"
        await again(running, other)
        assert stage(await said(running, other, lambda text: "in process" in text)) != in_stage
        assert running.preloaded(named.service_id) is None
        assert running.preloaded(off.service_id) is None


async def test_a_module_that_hangs_ends_its_process_or_does_not_exist_holds_up_no_start(
    supervisor: Any, venv: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "_PRELOADING_S", 0.5)
    venv.install("package")
    (venv.packages / "hanging.py").write_text("import time\ntime.sleep(1000)\n")
    (venv.packages / "ending.py").write_text("import os\nos._exit(3)\n")
    reasons = {
        "hanging": "not preloaded: its imports did not end within 0.5 s",
        "ending": "not preloaded: it has ended with exit code 3",
        "no": "not preloaded: no cannot be imported: ModuleNotFoundError: No module named 'no'",
    }
    async with supervisor() as running:
        for name, reason in reasons.items():
            spec = venv.agent(name=name, preload=name)
            await running.start(spec)
            assert await said(running, spec, bool) == reason
            await again(running, spec)
            assert venv.facts(spec)["package"] == venv.facts(spec)["pid"]


async def test_packages_read_what_is_in_the_agents_directory_now_and_forks_share_no_secret(
    supervisor: Any, venv: Environment
) -> None:
    reading = "import multiprocessing\nwith open('settings') as file: SETTINGS = file.read()\n"
    venv.install("package", reading)
    spec = venv.agent()
    home = venv.directory / "svc"
    (home / "settings").write_text("old")
    key = "package.multiprocessing.current_process().authkey.hex()"
    more = f"facts |= {{'settings': package.SETTINGS, 'key': {key}}}"
    (home / "agent.py").write_text(AGENT.format(package="package").replace("\ndef ", f"\n{more}\ndef ", 1))
    async with supervisor() as running:
        await running.start(spec)
        in_stage = stage(await said(running, spec, bool))
        await again(running, spec)
        first = venv.facts(spec)
        await again(running, spec)
        second = venv.facts(spec)
        assert [first["package"], second["package"]] == [in_stage, in_stage]
        assert [first["settings"], second["settings"]] == ["old", "old"]
        assert first["key"] != second["key"]

        (home / "settings").write_text("new")
        await again(running, spec)
        assert venv.facts(spec)["settings"] == "new"
