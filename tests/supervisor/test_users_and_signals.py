"""As whom a command runs, and how it is asked to end."""

import os
import pwd
import signal
import sys
from pathlib import Path

import pytest

from agentmgr.errors import InvalidRequest
from agentmgr.manager import AgentManager
from agentmgr.models import OnManagerDeath, RestartMode, ServiceConfig, ServiceSpec, StopSignal
from agentmgr.supervisor import accounts

SAYS = """
import os, signal, sys, time
for number in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH}:
    signal.signal(number, lambda number, _: (print("got", signal.Signals(number).name), sys.exit(0)))
print("up", flush=True)
child = os.fork()
if not child:
    os.setsid()
signal.pause()
"""


@pytest.mark.parametrize("how", [StopSignal.TERM, StopSignal.INT, StopSignal.WINCH])
async def test_a_stop_sends_the_signal_that_was_chosen_to_all_its_processes(
    supervisor, tmp_path: Path, how: StopSignal
) -> None:
    async with supervisor() as s:
        words = (sys.executable, "-u", "-c", SAYS)
        spec = ServiceSpec("svc", ServiceConfig(command=words, stop_signal=how, stop_timeout=20))
        await s.start(spec)
        await s.stop(spec.service_id)
        log = s.log_path("svc").read_text()
    assert log.split("\n").count(f"got {how}") == 2, log
    assert log.count("got") == 2


async def test_the_guard_sends_it_too(supervisor, tmp_path: Path, descendants) -> None:
    async with supervisor() as s:
        config = ServiceConfig(
            command=("sleep", "1000"), stop_signal=StopSignal.INT, on_manager_death=OnManagerDeath.DIE
        )
        await s.start(ServiceSpec("svc", config))
        guard = s._launcher._shared.guard
        assert [how.split()[1] for how in guard._watched.values()] == ["SIGINT"]


def test_an_agent_ends_on_sigterm_only() -> None:
    with pytest.raises(InvalidRequest, match="stop_signal is for commands"):
        ServiceSpec("svc", ServiceConfig(agent_factory_path="a.py", stop_signal=StopSignal.INT))
    with pytest.raises(InvalidRequest, match="--sessions memory"):
        ServiceSpec("svc", ServiceConfig(agent_factory_path="a.py", user="nobody"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another user")
async def test_root_runs_a_command_as_another_user_with_that_users_groups(supervisor, recorder) -> None:
    nobody = pwd.getpwnam("nobody")
    async with supervisor() as s:
        script = 'echo "$(id -u) $(id -g) $(id -G) $HOME $USER $LOGNAME"; exec sleep 1000'
        for limit in (None, 100):  # with a limit, a shell holds it back
            config = ServiceConfig(command=("/bin/sh", "-c", script), user="nobody", max_open_files=limit)
            spec = ServiceSpec(f"svc-{limit}", config)
            await s.start(spec)
            uid, gid, *rest = s.log_path(spec.name).read_text().split()
            assert (int(uid), int(gid)) == (nobody.pw_uid, nobody.pw_gid)
            assert rest[-3:] == [nobody.pw_dir, "nobody", "nobody"]
            assert {int(group) for group in rest[:-3]} == set(os.getgrouplist("nobody", nobody.pw_gid))
            assert s.log_path(spec.name).stat().st_uid == 0, "what it said is not its to change"
            await s.stop(spec.service_id)


async def test_who_cannot_be_changed_to_is_refused_at_registering(tmp_path: Path, monkeypatch) -> None:
    async with AgentManager(tmp_path / "a.db") as manager:

        async def register(user: str) -> None:
            config = ServiceConfig(user=user, restart=RestartMode.NEVER)
            await manager.register_service("svc", command=("/bin/true",), config=config, check=True)

        with pytest.raises(InvalidRequest, match="user is not known on this machine: 'no-such-user'"):
            await register("no-such-user")
        monkeypatch.setattr(accounts.os, "geteuid", lambda: 12345)
        with pytest.raises(InvalidRequest, match="only where root runs the manager"):
            await register("root")


def test_signals_have_the_names_of_the_system() -> None:
    assert all(signal.Signals[how] for how in StopSignal)
