"""A manager that was started with signals ignored or blocked: exits are seen, and children get defaults."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

MANAGER = textwrap.dedent(
    """
    import pathlib, signal, sys, trio
    from agentmgr.errors import ServiceFailedToStart
    from agentmgr.models import ServiceConfig, ServiceSpec
    from agentmgr.supervisor import Supervisor

    class Recorder:
        async def instance_spawned(self, record): pass
        async def instance_gone(self, instance_id): pass
        def instance_changed(self, instance): pass
        def health_checked(self, check): pass
        async def drain(self, instance_id, timeout_s, *, for_good): pass

    async def main(child, report, logs, ignored):
        supervisor = Supervisor(Recorder(), log_dir=pathlib.Path(logs))
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            command = (sys.executable, "-S", child, "--port", "{port}", "--report", report)
            await supervisor.start(ServiceSpec("well", ServiceConfig(command=command)))
            signal.raise_signal(int(ignored))  # it does not end us, as it did not before
            command = ("/bin/sh", "-c", "exit 7")
            try:
                await supervisor.start(ServiceSpec("ill", ServiceConfig(command=command)))
            except ServiceFailedToStart as error:
                print(error)
            await supervisor.shutdown()

    trio.run(main, *sys.argv[1:])
    """
)


@pytest.mark.parametrize("number", [signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_signals_inherited_as_ignored_or_blocked(number, tmp_path):
    report = tmp_path / "report.json"
    child = os.path.join(os.path.dirname(__file__), "child.py")

    def ill_bred_parent():
        signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, number])

    words = [sys.executable, "-c", MANAGER, child, str(report), str(tmp_path / "logs"), str(int(number))]
    done = subprocess.run(
        words, preexec_fn=ill_bred_parent, capture_output=True, text=True, timeout=60, check=True
    )
    assert "exit code 7" in done.stdout
    given = json.loads(report.read_text())
    # Python itself ignores these two in the child.
    assert given["ignored"] == ["SIGPIPE", "SIGXFSZ"]
    assert given["blocked"] == []
