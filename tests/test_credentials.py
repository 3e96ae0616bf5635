"""Only members of a cluster talk with each other, each knows who the other is, and a refusal says why."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from trio.testing import memory_stream_pair

from agentmgr import credentials
from agentmgr.ca import VALID, Authority, back_up, fingerprint, key_digest, put_back
from agentmgr.credentials import MANAGER, RENEWED, Credentials, Member, explain, peer
from agentmgr.errors import CannotUseCluster, InvalidRequest

NODE = "nod_00112233aabbccdd"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "cluster")


@pytest.fixture
def manager(authority: Authority) -> Credentials:
    return Credentials(authority.directory)


def a_node(directory: Path, authority: Authority, *, now: datetime | None = None) -> Credentials:
    directory.mkdir()
    node = Credentials(directory)
    node.keep(authority.issue(node.make_request(), NODE, now), authority.pem)
    return node


def meet(server: ssl.SSLContext, client: ssl.SSLContext) -> list[ssl.SSLObject | str]:
    """Both ends after a handshake and a byte each way; in place of one that failed: why.

    In TLS 1.3 a client learns that its certificate was refused when it reads.
    """
    wires = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends: list[ssl.SSLObject | str] = [
        server.wrap_bio(wires[0], wires[1], server_side=True),
        client.wrap_bio(wires[1], wires[0]),
    ]
    steps = [[end.do_handshake, partial(end.write, b"!"), partial(end.read, 1)] for end in ends]  # type: ignore[union-attr]
    for _ in range(10):  # flights
        for side, left in enumerate(steps):
            try:
                while left:
                    left[0]()
                    left.pop(0)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                ends[side] = explain(error) or repr(error)
                left.clear()
                wires[1 - side].write_eof()
    assert not any(steps)
    return ends


def test_members_know_each_other_and_what_they_speak(
    authority: Authority, manager: Credentials, tmp_path: Path
) -> None:
    node = a_node(tmp_path / "node", authority)
    for side, other, expected in ((manager, node, (NODE, MANAGER)), (node, manager, (MANAGER, NODE))):
        server, client = meet(side.server_context("b/1", "a/1"), other.client_context("a/1"))
        assert not isinstance(server, str)
        assert not isinstance(client, str)
        assert (peer(server), peer(client)) == tuple(Member(authority.cluster_id, who) for who in expected)
        assert server.selected_alpn_protocol() == client.selected_alpn_protocol() == "a/1"
        assert client.version() == "TLSv1.3"
        assert (client.cipher() or [None])[0] is not None

    strict = node.client_context()
    strict.verify_flags |= ssl.VERIFY_X509_STRICT  # the default of later Pythons
    _, client = meet(manager.server_context(), strict)
    assert not isinstance(client, str)


def test_strangers_and_foreign_and_expired_certificates_are_refused_with_the_reason(
    authority: Authority, manager: Credentials, tmp_path: Path
) -> None:
    """Each by both kinds of server, and an expired or foreign server by its client."""
    other_cluster = Authority.open(tmp_path / "other")
    foreigner = a_node(tmp_path / "foreigner", other_cluster)
    expired = a_node(tmp_path / "expired", authority, now=datetime.now(UTC) - VALID - timedelta(minutes=1))
    early = a_node(tmp_path / "early", authority, now=datetime.now(UTC) + timedelta(days=3))
    (foreigner.ca_file).write_bytes(authority.pem)  # it believes ours
    for strangers in (False, True):
        context = manager.server_context("a/1", strangers=strangers)
        server, client = meet(context, foreigner.client_context("a/1"))
        assert server == "its certificate is of another cluster"
        assert "does not know the CA of our certificate" in str(client)
        server, client = meet(context, expired.client_context("a/1"))
        assert "has expired: let it join again" in str(server)
        assert "our certificate has expired: join again" in str(client)
        server, client = meet(context, early.client_context("a/1"))
        assert "compare the clocks" in str(server)
        assert "compare the clocks" in str(client)

    without = credentials.context_of(False, authority.directory / "ca.pem")
    server, client = meet(manager.server_context(), without)
    assert server == "it showed no certificate"
    assert "asks for a certificate" in str(client)
    server, client = meet(manager.server_context(strangers=True), without)
    assert not isinstance(server, str)
    assert not isinstance(client, str)
    assert peer(server) is None
    assert peer(client) == Member(authority.cluster_id, MANAGER)

    _, client = meet(expired.server_context(), manager.client_context())
    assert "has expired" in str(client)
    _, client = meet(manager.server_context(), a_node(tmp_path / "n", other_cluster).client_context())
    assert client == "its certificate is of another cluster"

    old = a_node(tmp_path / "old", authority).client_context()
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    server, client = meet(manager.server_context(), old)
    assert "TLS 1.3" in str(server)
    assert "TLS 1.3" in str(client)


async def test_what_is_no_tls_is_explained(manager: Credentials) -> None:
    for sent, told in ((b"GET / HTTP/1.1\r\n\r\n", "HTTP request"), (b"hello manager\n", "not speak TLS")):
        one, other = memory_stream_pair()
        await one.send_all(sent)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await trio.SSLStream(other, manager.server_context(), server_side=True).do_handshake()
        assert told in str(explain(caught.value))
    assert explain(OSError("no route to host")) is None


def test_a_certificate_is_renewed_in_time_and_used_by_the_next_handshake(
    authority: Authority, manager: Credentials, tmp_path: Path
) -> None:
    node = a_node(tmp_path / "node", authority)
    now = datetime.now(UTC)
    assert not node.is_due(now + VALID - RENEWED - timedelta(hours=1))
    assert node.is_due(now + VALID - RENEWED + timedelta(hours=1))
    until = manager.valid_until()
    context = manager.server_context("a/1")
    assert manager.server_context("a/1") is context  # sessions are resumed by one that stays the same
    assert not authority.renew_own()
    manager.keep(authority.issue(manager.make_request(), MANAGER, now - (VALID - RENEWED)))
    assert authority.renew_own(now + timedelta(minutes=1))
    assert manager.server_context("a/1") is not context
    assert until is not None
    assert (manager.valid_until() or now) >= until
    node.keep(authority.issue(node.make_request(), NODE))
    server, _ = meet(manager.server_context(strangers=True), node.client_context())
    assert not isinstance(server, str)


def test_the_ca_and_the_keys_outlive_the_manager_and_are_their_owners_alone(
    authority: Authority, manager: Credentials
) -> None:
    again = Authority.open(authority.directory)
    assert (again.pem, again.cluster_id, again.fingerprint) == (
        authority.pem,
        authority.cluster_id,
        fingerprint(authority.pem),
    )
    assert key_digest(manager.make_request()) == key_digest(manager.make_request())
    assert stat.S_IMODE(os.stat(authority.directory).st_mode) == 0o700
    for file in authority.directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("broken", ["ca-key.pem", "ca.pem", "key.pem"])
def test_a_ca_that_is_damaged_is_neither_used_nor_replaced(authority: Authority, broken: str) -> None:
    (authority.directory / broken).write_text("no key")
    (authority.directory / "certificate.pem").unlink()
    with pytest.raises(CannotUseCluster, match=r"`agentmgr restore`, or remove that directory"):
        Authority.open(authority.directory)
    assert (authority.directory / broken).read_text() == "no key"


def test_a_member_without_its_files_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(CannotUseCluster, match=r"`agentmgr node --join`"):
        Credentials(tmp_path).client_context()


def _rsa() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda request: b"", "no request"),
        (lambda request: request[:200] + b"\n-----END CERTIFICATE REQUEST-----\n", "no request"),
        (lambda request: request + b"x" * 10_000, "too long"),
        (lambda request: _rsa(), "P-256"),
        (lambda request: "ça".encode("latin-1"), "no request"),
    ],
)
def test_what_is_no_request_of_ours_gets_no_certificate(
    authority: Authority, manager: Credentials, spoil: Callable[[bytes], bytes], told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        authority.issue(spoil(manager.make_request()), NODE)


def test_a_cluster_without_cryptography_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography.x509", None)
    with pytest.raises(CannotUseCluster, match=r"agentmgr-trio\[cluster\]"):
        Authority.open(tmp_path / "cluster")


def test_a_backup_has_the_ca_and_a_restored_manager_is_the_same_to_its_nodes(
    authority: Authority, tmp_path: Path
) -> None:
    back_up(tmp_path / "none", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    copy = tmp_path / "copy.d" / "cluster"
    back_up(authority.directory, copy)
    assert sorted(file.name for file in copy.iterdir()) == ["ca-key.pem", "ca.pem"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in copy.iterdir()} == {0o600}
    assert put_back(copy, authority.directory) is None  # it is there

    (elsewhere := tmp_path / "elsewhere.d").mkdir()
    assert put_back(copy, elsewhere / "cluster") is None
    assert Authority.open(elsewhere / "cluster").fingerprint == authority.fingerprint
    server, client = meet(
        Credentials(elsewhere / "cluster").server_context(),
        a_node(tmp_path / "node", authority).client_context(),
    )
    assert not isinstance(server, str)
    assert not isinstance(client, str)

    other = Authority.open(tmp_path / "other")
    kept = put_back(copy, other.directory)
    assert kept is not None
    assert (kept / "ca.pem").read_bytes() == other.pem
    assert Authority.open(other.directory).pem == authority.pem
