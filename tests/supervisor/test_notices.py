"""What commands tell of themselves by sd_notify(3), from senders as there are."""

import json
import os
import shutil
import socket
import sys

import pytest
import trio
import trio.testing

from agentmgr.errors import ServiceFailedToStart
from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.supervisor.notices import Notices, notify_address
from tests.supervisor.conftest import CHILD

PYTHON = """
import os, socket
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
    notify.send(b"READY=1\\nSTATUS=half\\x1b[2J past\\n")
"""
PERL = """
use Socket;
socket(my $notify, AF_UNIX, SOCK_DGRAM, 0) or die $!;
my $to = pack_sockaddr_un("\\0" . substr($ENV{NOTIFY_SOCKET}, 1));
send($notify, "READY=1\\nSTATUS=half[2J past", 0, $to) or die $!;
"""
SENDERS = {
    "python": [sys.executable, "-S", "-c", PYTHON],
    "perl": ["perl", "-e", PERL],
    "systemd-notify": ["systemd-notify", "--ready", "--status=half[2J past"],
}


def says(sender, *more, **config):
    """A service that never listens: what it sends is all there is."""
    words = ("/bin/sh", "-c", '"$@"; exec sleep 600', "sh", *SENDERS[sender], *more)
    return ServiceSpec("svc", ServiceConfig(command=words, restart="never", **config))


@pytest.mark.parametrize("sender", SENDERS)
async def test_ready_is_believed_and_the_status_shown(supervisor, sender):
    if shutil.which(SENDERS[sender][0]) is None:
        pytest.skip(f"{sender} is not installed")
    async with supervisor(health_check_interval=3600) as s:
        await s.start(says(sender, startup_timeout=10))
        (instance,) = s.instances()
        assert instance.status is ServiceStatus.RUNNING
        assert instance.said == "half[2J past"


async def test_what_is_to_serve_and_tells_nothing_is_not_ready(supervisor):
    async with supervisor() as s:
        words = ("/bin/sh", "-c", "exec sleep 600", "sh", "{port}")
        spec = ServiceSpec("svc", ServiceConfig(command=words, startup_timeout=0.3, restart="never"))
        with pytest.raises(ServiceFailedToStart, match=r"not ready within 0\.3 s.*no READY=1 came"):
            await s.start(spec)


async def test_the_next_manager_listens_again_for_what_it_adopts(supervisor, recorder, tmp_path):
    """And in between a message is lost, and its sender unharmed."""
    code = f"""
import os, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sys.argv = ["child.py", "--port", os.environ["PORT"]]
def tell():
    while True:
        try:
            notify.sendto(b"STATUS=in peace", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
        except ConnectionRefusedError:
            open({str(tmp_path / "refused")!r}, "w")
        time.sleep(0.02)
import threading, runpy
threading.Thread(target=tell, daemon=True).start()
runpy.run_path({str(CHILD)!r}, run_name="__main__")
"""
    config = ServiceConfig(command=(sys.executable, "-c", code))
    spec = ServiceSpec("svc", config, desired_status=DesiredStatus.RUNNING)
    async with supervisor(leave_running=True) as s:
        await s.start(spec)
        (before,) = s.instances()
    with trio.fail_after(60):
        while not (tmp_path / "refused").exists():  # noqa: ASYNC110
            await trio.sleep(0.02)
    async with supervisor(adopt=[(spec, list(recorder.records.values()))]) as s:
        with trio.fail_after(60):
            while s.instances()[0].said != "in peace":  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert s.instances()[0].pid == before.pid


async def test_it_is_said_that_another_program_took_the_socket_while_no_manager_ran(
    supervisor, recorder, command, caplog
):
    spec = command()
    async with supervisor(leave_running=True) as s:
        await s.start(spec)
    (record,) = recorder.records.values()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.bind("\0" + notify_address(record.token)[1:])
        async with supervisor(adopt=[(spec, [record])]) as s:
            assert s.instances()[0].pid == record.pid
    assert f"cannot receive what {spec.name} reports by sd_notify" in caplog.text


async def test_only_ours_are_heard(autojump_clock):
    """Another user's process may know the address: the kernel lists it to all."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user for a test")
    notices = Notices("token")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notices.listen, lambda pid: False)
            await send_as(65534, b"READY=1")
            with trio.move_on_after(10):
                await notices.ready.wait()
            assert not notices.ready.is_set()
            await send_as(0, b"READY=1")
            await notices.ready.wait()
            nursery.cancel_scope.cancel()
    finally:
        notices.close()


async def test_a_watchdog_goes_by_its_own_rhythm_and_by_the_time_it_was_given(autojump_clock):
    notices = Notices("token")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notices.listen, lambda pid: True)

            async def send(message):
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    sender.sendto(message, "\0" + notify_address("token")[1:])
                await trio.testing.wait_all_tasks_blocked(0.01)

            await trio.sleep(60)
            notices.expect_watchdog()
            assert notices.silence(5) is None
            await trio.sleep(6)
            assert notices.silence(5) == "no WATCHDOG=1 for 6.0 s"
            assert not notices.watchdog
            for _ in range(2):
                await trio.sleep(60)
                await send(b"WATCHDOG=1")
            await trio.sleep(170)
            assert notices.silence(5) is None
            await trio.sleep(20)
            assert notices.silence(5).startswith("no WATCHDOG=1 for 190")
            await send(b"WATCHDOG=1")
            assert notices.silence(5) is None
            await send(b"WATCHDOG=trigger")
            assert notices.silence(5) == "it reported its own failure (WATCHDOG=trigger)"
            await send(b"WATCHDOG=1")
            assert notices.silence(5) is None
            nursery.cancel_scope.cancel()
    finally:
        notices.close()


async def send_as(uid, message):
    code = "import json, os, socket, sys; uid, to, message = json.loads(sys.argv[1]); os.setuid(uid);"
    code += "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(message.encode(), '\\0' + to[1:])"
    arguments = json.dumps([uid, notify_address("token"), message.decode()])
    await trio.run_process([sys.executable, "-S", "-c", code, arguments])


async def test_descriptors_that_come_along_are_not_taken(descriptors):
    notices = Notices("token")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notices.listen, lambda pid: True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.connect("\0" + notify_address("token")[1:])
                before = descriptors()
                socket.send_fds(sender, [b"READY=1"], [0, 0, 0])
                await notices.ready.wait()
                assert descriptors() == before
            nursery.cancel_scope.cancel()
    finally:
        notices.close()


async def test_what_was_said_while_the_manager_was_held_up_counts(mock_clock: trio.testing.MockClock):
    notices = Notices("token-of-this-test")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect("\0" + notify_address("token-of-this-test")[1:])
            mock_clock.jump(5)
            assert notices.silence(1) == "no WATCHDOG=1 for 5.0 s"
            sender.send(b"WATCHDOG=1")
            assert notices.silence(1) is None
    finally:
        notices.close()
