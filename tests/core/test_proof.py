"""Each side's proof that it knows an instance's token, and what a proof is no good for."""

from __future__ import annotations

import pytest

from agentmgr.core.gateway_headers import from_gateway
from agentmgr.core.proof import (
    PROOF_AGE_S,
    SenderProofs,
    is_challenge,
    proof,
    sender_proof,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def made(token: str = "secret", subject: str = KEY, now: float = 100.0, salt: str = "s") -> str:
    return sender_proof(token, subject, now=now, salt=salt)


def test_it_is_good_for_its_handshake_at_its_instance() -> None:
    assert SenderProofs("secret").accepts(made(), KEY, now=100.0)


@pytest.mark.parametrize(
    "header",
    [
        made(token="another instance's"),
        made(subject="another handshake's key"),
        made().replace("100.000-s", "200.000-s"),
        made().partition(" ")[2],
        made()[:-1],
        "",
        " ",
        "nonsense",
        "100.000-s \xff\xfe",
    ],
)
def test_nothing_else_is(header: str) -> None:
    assert not SenderProofs("secret").accepts(header, KEY, now=100.0)


def test_an_agent_without_a_token_believes_no_proof() -> None:
    assert not SenderProofs("").accepts(made(token=""), KEY, now=100.0)


def test_it_is_good_once_and_not_for_long() -> None:
    proofs = SenderProofs("secret")
    assert proofs.accepts(made(), KEY, now=100.0)
    assert not proofs.accepts(made(), KEY, now=101.0)
    assert not proofs.accepts(made(salt="late"), KEY, now=100.0 + PROOF_AGE_S + 1)
    assert proofs.accepts(made(salt="another"), KEY, now=101.0)


def test_what_is_too_old_to_be_good_is_not_remembered() -> None:
    proofs = SenderProofs("secret")
    for second in range(1000):
        now = 100.0 + second
        assert proofs.accepts(made(now=now), KEY, now=now)
    assert len(proofs._seen) <= PROOF_AGE_S + 1


def test_the_answer_to_a_challenge_is_never_a_senders_proof() -> None:
    nonce, _, mac = made().partition(" ")
    challenge = f"{nonce} {KEY}"
    assert proof("secret", challenge) == mac
    assert not is_challenge(challenge)  # so no agent answers it


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("X-Agentmgr-Identity", True),
        ("x_agentmgr_identity", True),
        ("X-Agentmgr-Anything", True),
        ("X.Agentmgr~Identity", True),
        ("X-Forwarded-For", True),
        ("X-Forwarded-User", True),
        ("x.forwarded_prefix", True),
        ("X-Forwardedness", False),
        ("X-Request-Id", True),
        ("Cookie", False),
        ("X-Session-Id", False),
    ],
)
def test_which_headers_only_a_gateway_may_send(name: str, ours: bool) -> None:
    assert from_gateway(name) is ours
