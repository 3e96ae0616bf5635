"""Ports: each is lent once, and who holds one is found."""

import os
import socket

import pytest

from agentmgr.core.restart import Cause
from agentmgr.supervisor import addresses, listening_sockets
from agentmgr.supervisor.launcher import CannotLaunch


@pytest.fixture
def few(monkeypatch):
    """Five ports to choose from."""
    first = addresses.Ports().lend("127.0.0.1", None)
    monkeypatch.setattr(addresses.Ports, "_CHOICE", range(first, first + 5))


def test_no_port_is_lent_twice(few):
    ports = addresses.Ports()
    lent = []
    with pytest.raises(CannotLaunch) as caught:
        while True:
            lent.append(ports.lend("127.0.0.1", None))
    assert caught.value.cause is Cause.SHORTAGE
    assert len(lent) == len(set(lent)) > 0
    with pytest.raises(CannotLaunch, match="belongs to another service"):
        ports.lend("127.0.0.1", lent[0])
    ports.take_back(lent[0])
    assert ports.lend("127.0.0.1", None) == lent[0]


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_who_listens_is_found_both_ways(family, host):
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError as error:
        pytest.skip(f"no {host} on this machine: {error}")
    with server:
        port, inode = server.getsockname()[1], os.fstat(server.fileno()).st_ino
        assert listening_sockets.on_port(port) == inode
        assert (port, inode) in listening_sockets._look()  # as where there is no netlink
        assert listening_sockets.holder(inode) == os.getpid()
    assert listening_sockets.on_port(port) is None
    assert port not in dict(listening_sockets._look())


async def test_hosts_become_numbers():
    assert await addresses.resolve("localhost") == "127.0.0.1"
    assert await addresses.resolve("::1") == "::1"
    assert addresses.to_dial("0.0.0.0") == "127.0.0.1"
    with pytest.raises(CannotLaunch, match=r"the host 'no\.such\.host\.invalid' is not known"):
        await addresses.resolve("no.such.host.invalid")
