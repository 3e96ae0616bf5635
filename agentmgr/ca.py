"""The cluster's certificate authority, in the directory of the manager's credentials.

Each cluster has one of its own, and trusts no other. It is made when a manager first runs with `--cluster`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .credentials import MANAGER, Credentials, Member, import_cryptography, load_key, make_key
from .errors import CannotUseCluster, InvalidRequest, StorageError
from .replacing import replace

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateSigningRequest

VALID = timedelta(days=30)  #: a member's certificate
_CA_VALID = timedelta(days=365 * 30)
_CLOCKS_DIFFER = timedelta(days=1)  # a certificate is valid from then on before it was made
_LARGEST_REQUEST_BYTES = 10_000
_OF_THE_CA = ("ca-key.pem", "ca.pem")  # the certificate last: a directory that has one has a whole CA


class Authority:
    """The CA, in the directory of the manager's credentials. It issues certificates, and keeps none."""

    def __init__(self, key: EllipticCurvePrivateKey, certificate: Certificate, directory: Path) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding

        self._key = key
        self._certificate = certificate
        self.directory = directory
        self.pem = certificate.public_bytes(Encoding.PEM)
        self.fingerprint = fingerprint(self.pem)
        common_name = certificate.subject.rfc4514_string()
        self.cluster_id = common_name.rpartition(" ")[2]

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Authority:
        """That of a directory, which is made, with a new CA, where there is none. The manager's own
        certificate is made anew where it is due. Raises `CannotUseCluster`.
        """
        directory = Path(directory)
        import_cryptography()
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            if not cls.is_in(directory):
                _make_ca(directory)
            authority = cls._load(directory)
            authority.renew_own()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise CannotUseCluster(
                f"the cluster's CA in {directory} cannot be used ({why}): bring it back with "
                "`agentmgr restore`, or remove that directory, and let each node join again"
            ) from error
        return authority

    @staticmethod
    def is_in(directory: Path) -> bool:
        return (directory / "ca.pem").exists()

    @classmethod
    def _load(cls, directory: Path) -> Authority:
        from cryptography import x509

        certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        key = load_key(directory / "ca-key.pem")
        if key.public_key() != certificate.public_key():
            raise ValueError("ca-key.pem is not the key of ca.pem")
        return cls(key, certificate, directory)

    def renew_own(self, now: datetime | None = None) -> bool:
        """Makes the manager's certificate anew where it is due; whether it was."""
        own = Credentials(self.directory)
        if not own.is_due(now):
            return False
        own.keep(self.issue(own.make_request(), MANAGER, now))
        return True

    def issue(self, request: bytes, node_id: str, now: datetime | None = None) -> bytes:
        """A certificate, in PEM, for the key that has signed the request. Raises `InvalidRequest`.

        Nothing but the key is taken from the request.
        """
        from cryptography.hazmat.primitives.serialization import Encoding

        made = _certificate(
            self._certificate.subject,
            self._key,
            _read_request(request).public_key(),
            member=Member(self.cluster_id, node_id),
            valid=VALID,
            now=now,
        )
        return made.public_bytes(Encoding.PEM)

    def sign(self, content: bytes) -> str:
        """In Base64. Nothing else is signed by this key but certificates, which are no text."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        return base64.b64encode(self._key.sign(content, ec.ECDSA(hashes.SHA256()))).decode()

    def has_signed(self, content: bytes, signature: str) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            key = self._key.public_key()
            key.verify(base64.b64decode(signature), content, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True


def back_up(directory: Path, destination: Path) -> None:
    """Copies the CA of a directory, where there is one, to another one, which is made. The manager's own
    certificate is made anew by whoever uses the copy. Raises `StorageError`.
    """
    if not Authority.is_in(directory):
        return
    try:
        destination.parent.mkdir(mode=0o700, exist_ok=True)
        destination.mkdir(mode=0o700, exist_ok=True)
        for name in _OF_THE_CA:
            replace(destination / name, (directory / name).read_bytes(), lasting=True)
    except OSError as error:
        raise StorageError(f"the cluster's CA in {directory} cannot be copied: {error}") from error


def put_back(copied: Path, directory: Path) -> Path | None:
    """Puts the CA of a copy in the place of another one. Returns where that is kept now; None where the copy
    has no CA, it was there already, or there was none. Raises `StorageError`.
    """
    if not Authority.is_in(copied):
        return None
    kept = None
    try:
        if all((directory / name).exists() for name in _OF_THE_CA):
            if all((directory / name).read_bytes() == (copied / name).read_bytes() for name in _OF_THE_CA):
                return None
            kept = directory.with_name(
                f"{directory.name}.before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
            )
            directory.rename(kept)
    except OSError as error:
        raise StorageError(f"the cluster's CA in {directory} cannot be replaced: {error}") from error
    back_up(copied, directory)
    return kept


def key_digest(request: bytes) -> str:
    """SHA-256 of the public key for which a certificate is requested. Raises `InvalidRequest`."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = _read_request(request).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def fingerprint(pem: bytes) -> str:
    """SHA-256 of a certificate in PEM. Raises `ValueError` for what is none."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).hexdigest()


def _make_ca(directory: Path) -> None:
    """Its certificate is written last: a directory that has one has a whole CA."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    cluster_id = os.urandom(8).hex()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"agentmgr cluster {cluster_id}")])
    key = make_key(directory / "ca-key.pem")
    for left in ("certificate.pem", "key.pem"):  # of another CA
        (directory / left).unlink(missing_ok=True)
    replace(
        directory / "ca.pem",
        _certificate(name, key, key.public_key()).public_bytes(Encoding.PEM),
        lasting=True,
    )


def _certificate(
    issuer: Any,
    issuer_key: EllipticCurvePrivateKey,
    key: Any,
    *,
    member: Member | None = None,
    valid: timedelta = _CA_VALID,
    now: datetime | None = None,
) -> Certificate:
    """The CA's own without `member`. It has the extensions that OpenSSL's strict mode asks for (RFC 5280)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    now = now or datetime.now(UTC)
    is_ca = member is None
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    building = (
        x509.CertificateBuilder()
        .subject_name(issuer if is_ca else x509.Name([]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + valid)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca, **usage),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if member is not None:
        both = [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
        name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(member))])
        building = building.add_extension(x509.ExtendedKeyUsage(both), critical=False).add_extension(
            name,
            critical=True,  # as the subject is empty
        )
    return building.sign(issuer_key, hashes.SHA256())


def _read_request(request: bytes) -> CertificateSigningRequest:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

    try:
        if len(request) > _LARGEST_REQUEST_BYTES:
            raise ValueError("it is too long")
        read = x509.load_pem_x509_csr(request)
        key = read.public_key()
        if not (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)):
            raise ValueError("its key is none of the curve P-256")
        if not read.is_signature_valid:
            raise ValueError("its signature is wrong")
    except Exception as error:  # cryptography raises various ones for what it cannot read
        raise InvalidRequest(f"this is no request for a certificate: {error}") from error
    return read
