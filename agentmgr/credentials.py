"""Who a manager and its nodes are to each other: a key, a certificate, and the CA by which others are judged.

A member of a cluster, the manager or a node, has a directory with these three files. All connections between
machines are TLS 1.3 with a certificate on both sides, except that of a machine which wants to join. A
certificate names its member in a URI, `agentmgr://CLUSTER/manager` or `agentmgr://CLUSTER/node/NODE_ID`;
names and addresses of hosts mean nothing. `agentmgr.ca` issues certificates.

`cryptography`, of the extra `cluster`, is imported to make a key or to read a certificate, not to connect.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

from .errors import CannotUseCluster
from .replacing import replace

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

RENEWED = timedelta(days=20)  #: how much of a certificate's 30 days is left when it is made anew
_URI = re.compile(r"agentmgr://([0-9a-f]{16})/(?:manager|node/([a-z]+_[0-9a-f]{16}))")

MANAGER = ""  #: the node id of the manager, as everywhere


@frozen
class Member:
    """Whom a certificate names."""

    cluster_id: str
    node_id: str  #: `MANAGER`, or a node's

    def __str__(self) -> str:
        """The URI in its certificate."""
        kind = f"node/{self.node_id}" if self.node_id else "manager"
        return f"agentmgr://{self.cluster_id}/{kind}"


class HasPeer(Protocol):
    """An `ssl.SSLObject` or a `trio.SSLStream`, after its handshake."""

    def getpeercert(self) -> Any: ...


def peer(connection: HasPeer) -> Member | None:
    """Whom the certificate at the other end names; None: it showed none, or none of a cluster's.

    Only a certificate that the context has verified is seen here.
    """
    shown = connection.getpeercert() or {}
    for kind, value in shown.get("subjectAltName", ()):
        if kind == "URI" and (found := _URI.fullmatch(value)):
            return Member(found[1], found[2] or MANAGER)
    return None


class Credentials:
    """A member's directory: what it shows to others, and by which CA it judges them.

    The contexts are made anew when the files have changed, so ask for one before each handshake. Sessions
    are resumed by a context that stays the same.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._files = [str(file) for file in (self.ca_file, self.certificate_file, self.key_file)]
        self._contexts: dict[tuple[object, ...], ssl.SSLContext] = {}
        self._stamp: object = None

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def certificate_file(self) -> Path:
        return self.directory / "certificate.pem"

    @property
    def key_file(self) -> Path:
        return self.directory / "key.pem"

    def server_context(self, *protocols: str, strangers: bool = False) -> ssl.SSLContext:
        """Asks clients for a certificate of the cluster. `protocols`: as ALPN names them, the best one first.

        `strangers`: a client without a certificate gets through the handshake, for the caller to judge
        (`peer` is None); one with a certificate that is not in order never does. Raises `CannotUseCluster`
        where the files are missing or unfit.
        """
        return self._context("server", protocols, strangers)

    def client_context(self, *protocols: str) -> ssl.SSLContext:
        """Trusts any member of the cluster: compare `peer` with whom you meant to reach, after the handshake.

        Raises as `server_context`.
        """
        return self._context("client", protocols, False)

    def _context(self, side: str, protocols: tuple[str, ...], strangers: bool) -> ssl.SSLContext:
        try:
            if (stamp := tuple(self._looks())) != self._stamp:
                self._contexts.clear()
                self._stamp = stamp
            key = side, protocols, strangers
            if (context := self._contexts.get(key)) is None:
                context = context_of(side == "server", self.ca_file)
                context.load_cert_chain(self.certificate_file, self.key_file)
                if protocols:
                    context.set_alpn_protocols(list(protocols))
                if strangers:
                    context.verify_mode = ssl.CERT_OPTIONAL
                self._contexts[key] = context
        except OSError as error:  # of which `ssl.SSLError` is one
            why = error.strerror or error
            raise CannotUseCluster(
                f"the certificate in {self.directory} cannot be used ({why}): a node gets another one with "
                "`agentmgr node --join`, after its directory was removed; the manager makes its own"
            ) from error
        return context

    def _looks(self) -> Iterator[tuple[int, int, int]]:
        for file in self._files:
            found = os.stat(file)
            yield found.st_mtime_ns, found.st_size, found.st_ino

    def make_request(self) -> bytes:
        """A request for a certificate with this member's key, in PEM; the key is made where there is none."""
        try:
            key = load_key(self.key_file)
        except FileNotFoundError:
            key = make_key(self.key_file)
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def keep(self, certificate: bytes, ca: bytes | None = None) -> None:
        """Writes a certificate that was issued for this member's key, in PEM. Raises `CannotUseCluster`."""
        if ca is not None:
            self.trust(ca)
        self._write(self.certificate_file, certificate)

    def trust(self, ca: bytes) -> None:
        """Writes the CA's certificate, in PEM. Raises `CannotUseCluster`."""
        self._write(self.ca_file, ca)

    def _write(self, file: Path, content: bytes) -> None:
        try:
            replace(file, content, lasting=True)
        except OSError as error:
            raise CannotUseCluster(f"{file} cannot be written: {error.strerror or error}") from error

    def is_due(self, now: datetime | None = None) -> bool:
        """Whether the certificate is missing, or so old that it has to be made anew."""
        until = self.valid_until()
        return until is None or until - (now or datetime.now(UTC)) < RENEWED

    def valid_until(self) -> datetime | None:
        """None where there is no certificate."""
        from cryptography import x509

        try:
            return x509.load_pem_x509_certificate(self.certificate_file.read_bytes()).not_valid_after_utc
        except (OSError, ValueError):
            return None


def context_of(server: bool, ca_file: Path | None = None, *, ca: bytes | None = None) -> ssl.SSLContext:
    """TLS 1.3 with that CA alone (`ca`: in PEM); the peer has to show a certificate. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # whom it names is compared after the handshake
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca_file, cadata=None if ca is None else ca.decode())
    return context


def explain(error: BaseException) -> str | None:
    """Why a handshake failed, and what to do; None where TLS was not the reason."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ssl.SSLError):
        seen = seen.__cause__ or seen.__context__
    if seen is None:
        return None
    if isinstance(seen, ssl.SSLCertVerificationError):
        return _VERIFICATION.get(seen.verify_code, f"its certificate is not in order ({seen.verify_message})")
    return _ALERTS.get(seen.reason or "", f"the TLS handshake failed ({seen.reason or seen})")


# https://docs.openssl.org/3.0/man1/openssl-verification-options/, X509_V_ERR_…
_FOREIGN = "its certificate is of another cluster"
_VERIFICATION = {
    9: "its certificate is not valid yet: compare the clocks of the two machines",
    10: "its certificate has expired: let it join again, with a secret of `agentmgr nodes invite`",
    7: _FOREIGN,
    18: _FOREIGN,
    19: _FOREIGN,
    20: _FOREIGN,
    21: _FOREIGN,
}
CLOSED = "it closed the connection during the TLS handshake"
_ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it asks for a certificate of its cluster, and got none",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that our certificate has expired: "
    "join again, with a secret of `agentmgr nodes invite`",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the CA of our certificate: it is of another cluster",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it says that our certificate is not in order: "
    "compare the clocks of the two machines",
    "TLSV1_ALERT_DECRYPT_ERROR": "it does not accept the signature of our certificate: "
    "it is of another cluster",
    "WRONG_VERSION_NUMBER": "it does not speak TLS: is this the port of a cluster (`--cluster-port`)?",
    "HTTP_REQUEST": "it sent an HTTP request: this is the port of the cluster, and not of the API",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it does not speak TLS 1.3",
    "UNEXPECTED_EOF_WHILE_READING": CLOSED,
}


def import_cryptography() -> None:
    try:
        import cryptography.x509  # noqa: F401
    except ImportError:
        raise CannotUseCluster(
            "a cluster needs the package cryptography: pip install 'agentmgr-trio[cluster]'"
        ) from None


def make_key(file: Path) -> EllipticCurvePrivateKey:
    import_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    replace(file, pem, lasting=True)
    return key


def load_key(file: Path) -> EllipticCurvePrivateKey:
    pem = file.read_bytes()
    import_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(pem, None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError(f"{file.name} has a key of another kind")
    return key
