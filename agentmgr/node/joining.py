"""How a machine becomes a node: with a secret it gets a certificate for its own key.

The secret that `agentmgr nodes invite` prints has two parts: the fingerprint of the cluster's CA, by which
the machine knows the manager, and a word, by which the manager knows the machine:

1. The machine connects without knowing whom it will find, gets the CA's certificate, and compares its
   fingerprint. Nothing else has been said.
2. It connects again, trusts that CA alone, and sends the word and a request for a certificate, a
   `JoinRequest`. The answer is the certificate, or why not.

A node whose certificate is due for renewal does the second step with that certificate in place of the word.
Each message is one line of JSON.
"""

from __future__ import annotations

import base64
import re
import secrets
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import trio
from attrs import Factory, field, frozen

from ..ca import fingerprint
from ..codec import from_answer, parse_json, to_json
from ..credentials import Credentials, context_of
from ..dialing import ManagerAddress, NotNow, connect, dial
from ..errors import CannotReachManager, InvalidRequest
from ..generation import Generation

JOIN_PROTOCOL = "agentmgr-join/1"
LONGEST_BYTES = 2**16  #: of one message
ANSWER_S = 5.0
_PREFIX = "agj_"  # so that scanners for leaked secrets can know one
_SECRET = re.compile(rf"{_PREFIX}([A-Za-z0-9_-]{{43}})\.([A-Za-z0-9_-]{{32}})")

T = TypeVar("T")


@frozen
class Greeting:
    """What a manager says first."""

    ca: str  #: its certificate, in PEM
    agentmgr: str  #: the manager's version


@frozen
class JoinRequest:
    node_id: str
    request: str  #: for a certificate, in PEM
    secret: str = field(default="", repr=False)  #: the word; empty: to renew a certificate, which is shown
    name: str = ""
    address: str = ""
    labels: Mapping[str, str] = Factory(dict)
    resources: Mapping[str, float] = Factory(dict)
    obeys: Generation | None = None  #: nothing is asked for: a manager of before is told of the newer one


@frozen
class JoinAnswer:
    certificate: str = ""  #: in PEM
    name: str = ""  #: what the node is called
    refusal: str = ""  #: why there is no certificate
    busy: bool = False  #: it is to ask again


@frozen
class Secret:
    fingerprint: str = field(repr=False)  #: of the CA, in hexadecimal digits
    word: str = field(repr=False)

    @classmethod
    def new(cls, ca_fingerprint: str) -> Secret:
        return cls(ca_fingerprint, secrets.token_urlsafe(24))

    @classmethod
    def parse(cls, text: str) -> Secret:
        """Raises `InvalidRequest`."""
        if (found := _SECRET.fullmatch(text.strip())) is None:
            raise InvalidRequest("this is no secret of `agentmgr nodes invite`: it has the form agj_….…")
        return cls(base64.urlsafe_b64decode(found[1] + "=").hex(), found[2])

    def __str__(self) -> str:
        digest = base64.urlsafe_b64encode(bytes.fromhex(self.fingerprint)).decode().rstrip("=")
        return f"{_PREFIX}{digest}.{self.word}"


async def learn_ca(manager: ManagerAddress, expected: str, *, source: str | None = None) -> bytes:
    """The CA's certificate, in PEM, which has that fingerprint. Raises `OSError`, `CannotReachManager`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([JOIN_PROTOCOL])
    stream = await connect(manager, context, source=source)
    try:
        greeting = await receive(stream, Greeting, manager)
    finally:
        await trio.aclose_forcefully(stream)
    pem = greeting.ca.encode()
    try:
        matches = fingerprint(pem) == expected
    except ValueError:
        matches = False
    if not matches:
        raise CannotReachManager(
            f"the manager at {manager} is of another cluster than the secret: make one there with "
            "`agentmgr nodes invite`, or join the manager that made this one"
        )
    return pem


async def join(
    manager: ManagerAddress,
    credentials: Credentials,
    ask: JoinRequest,
    ca: bytes,
    *,
    source: str | None = None,
) -> JoinAnswer:
    """Makes this machine a node, and keeps its certificate. Raises as `learn_ca`, and `InvalidRequest` where
    the manager refuses it.
    """
    context = context_of(False, ca=ca)
    context.set_alpn_protocols([JOIN_PROTOCOL])
    stream = await connect(manager, context, source=source)
    return await _ask(stream, manager, credentials, ask, ca)


async def renew(
    manager: ManagerAddress, credentials: Credentials, node_id: str, *, source: str | None = None
) -> None:
    """Gets a new certificate with the present one. Raises as `join`."""
    ask = JoinRequest(node_id, credentials.make_request().decode())
    stream = await dial(manager, credentials, JOIN_PROTOCOL, source=source)
    await _ask(stream, manager, credentials, ask)


async def tell_of_newer(
    manager: ManagerAddress,
    credentials: Credentials,
    node_id: str,
    newer: Generation,
    *,
    source: str | None = None,
) -> None:
    """Tells a manager of before, which may be there still, that it was replaced. Raises as `learn_ca`."""
    stream = await dial(manager, credentials, JOIN_PROTOCOL, source=source)
    try:
        await receive(stream, Greeting, manager)
        await send(stream, JoinRequest(node_id, "", obeys=newer))
        await receive(stream, JoinAnswer, manager)
    except trio.BrokenResourceError as error:
        raise NotNow(f"{manager} closed the connection") from error
    finally:
        await trio.aclose_forcefully(stream)


async def _ask(
    stream: trio.SSLStream[trio.SocketStream],
    manager: ManagerAddress,
    credentials: Credentials,
    ask: JoinRequest,
    ca: bytes | None = None,
) -> JoinAnswer:
    try:
        await receive(stream, Greeting, manager)
        await send(stream, ask)
        answer = await receive(stream, JoinAnswer, manager)
    except trio.BrokenResourceError as error:
        raise NotNow(f"{manager} closed the connection") from error
    finally:
        await trio.aclose_forcefully(stream)
    if answer.refusal:
        kind = NotNow if answer.busy else InvalidRequest
        raise kind(answer.refusal)
    credentials.keep(answer.certificate.encode(), ca)
    return answer


async def send(stream: trio.abc.SendStream, message: Greeting | JoinRequest | JoinAnswer) -> None:
    await stream.send_all(to_json(message).encode() + b"\n")


async def receive(stream: trio.abc.ReceiveStream, kind: type[T], who: object) -> T:
    """The next message. Raises `CannotReachManager` for anything else, and where it does not come in time."""
    line = b""
    with trio.move_on_after(ANSWER_S):
        try:
            while not line.endswith(b"\n") and len(line) <= LONGEST_BYTES:
                if not (data := bytes(await stream.receive_some(LONGEST_BYTES))):
                    break
                line += data
        except trio.BrokenResourceError:
            pass
    if line.endswith(b"\n"):
        try:
            return from_answer(parse_json(line), kind)
        except InvalidRequest as error:
            raise CannotReachManager(f"{who} sends what is no {kind.__name__}: {error}") from None
    raise NotNow(f"{who} does not say what is expected, or closed the connection")


def read_secret(file: Path) -> Secret:
    """Raises `InvalidRequest`."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"the secret in {file} cannot be read: {why}") from None
    try:
        return Secret.parse(text)
    except InvalidRequest as error:
        raise InvalidRequest(f"{file}: {error.message if text.strip() else 'it is empty'}") from None
