"""What a node keeps of bundles: parts in any order lose nothing, and nothing bad is unpacked."""

import errno
import io
import os
import shutil
import stat
import tarfile
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from agentmgr.node import bundles
from agentmgr.node.bundles import UNUSED_S, BadBundle, NodeBundles


def archive(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in members:
            if member.isreg():
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, to, mode
    return info


def digest_of(data: bytes) -> str:
    return sha256(data).hexdigest()


async def put(node: NodeBundles, data: bytes) -> Path | None:
    await node.put(digest_of(data), len(data), 0, data)
    return node.find(digest_of(data))


GOOD = archive(member("agent.py"), member("run", mode=0o755), data=b"hello")
DIGEST = digest_of(GOOD)


@pytest.fixture
def node(tmp_path: Path) -> NodeBundles:
    return NodeBundles(tmp_path / "bundles")


async def test_parts_that_come_twice_or_leave_a_gap_change_nothing(node: NodeBundles, tmp_path: Path) -> None:
    size = len(GOOD)
    assert await node.put(DIGEST, size, 0, b"") == 0
    assert await node.put(DIGEST, size, 0, GOOD[:700]) == 700
    assert await node.put(DIGEST, size, 0, GOOD[:700]) == 700
    assert await node.put(DIGEST, size, 900, GOOD[900:]) == 700
    assert node.find(DIGEST) is None
    # The daemon was killed and started again.
    another = NodeBundles(tmp_path / "bundles")
    assert await another.put(DIGEST, size, 0, b"") == 700
    assert await another.put(DIGEST, size, 700, GOOD[700:]) == size
    assert await another.put(DIGEST, size, 700, GOOD[700:]) == size
    found = another.find(DIGEST)
    assert found is not None
    assert {each.name: each.read_bytes() for each in found.iterdir()} == {
        "agent.py": b"hello",
        "run": b"hello",
    }
    assert [stat.S_IMODE((found / name).stat().st_mode) for name in ("agent.py", "run")] == [0o444, 0o555]
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert [each.name for each in (tmp_path / "bundles").iterdir()] == [DIGEST]


async def test_two_that_send_at_once_make_one(node: NodeBundles) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(node.put, DIGEST, len(GOOD), 0, GOOD)
    assert node.find(DIGEST) is not None


async def test_what_has_another_digest_is_thrown_away_and_may_be_sent_again(node: NodeBundles) -> None:
    bad = GOOD[:600] + b"!" + GOOD[601:]
    with pytest.raises(BadBundle, match="another digest"):
        await node.put(DIGEST, len(bad), 0, bad)
    assert await node.put(DIGEST, len(GOOD), 0, b"") == 0
    assert await put(node, GOOD) is not None


@pytest.mark.parametrize("digest", ["", "../../etc", "A" * 64, "0" * 63 + "/", "0" * 65])
async def test_what_is_no_digest_becomes_no_path(node: NodeBundles, digest: str) -> None:
    with pytest.raises(BadBundle, match="is no digest"):
        await node.put(digest, 10, 0, b"x")
    with pytest.raises(BadBundle, match="is no digest"):
        node.find(digest)


HOSTILE = {
    "absolute": archive(member("/etc/x")),
    "above": archive(member("../x")),
    "above, in between": archive(member("a", tarfile.DIRTYPE), member("a/../../x")),
    "link out": archive(member("a", tarfile.SYMTYPE, "../..")),
    "absolute link": archive(member("a", tarfile.SYMTYPE, "/etc")),
    "through a link": archive(
        member("d", tarfile.DIRTYPE), member("a", tarfile.SYMTYPE, "d"), member("a/x"), data=b"x"
    ),
    "over a link": archive(member("a", tarfile.SYMTYPE, "b"), member("a"), data=b"x"),
    "hard link": archive(member("a"), member("b", tarfile.LNKTYPE, "a")),
    "pipe": archive(member("a", tarfile.FIFOTYPE)),
    "device": archive(member("a", tarfile.CHRTYPE)),
    "no directory of it": archive(member("a/b")),
    "not an archive": b"x" * 2000,
    "large": archive(member("a"), data=b"x" * 5000),
    "many": archive(*(member(str(number)) for number in range(20))),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_nothing_is_unpacked_that_packing_does_not_make(
    node: NodeBundles, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "MAX_BUNDLE_BYTES", 4000)
    monkeypatch.setattr(bundles, "MAX_ENTRIES", 15)
    with pytest.raises(BadBundle):
        await put(node, HOSTILE[kind])
    assert node.find(digest_of(HOSTILE[kind])) is None
    assert os.listdir(tmp_path) == ["bundles"]
    assert os.listdir(tmp_path / "bundles") == []


async def test_a_full_disk_is_said_and_leaves_nothing(
    node: NodeBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
        with pytest.raises(BadBundle, match=r"1\.0 MiB are free in .*bundles, and 16\.0 MiB are needed"):
            await put(node, GOOD)
    real_chmod = os.chmod

    def full(path: Any, mode: int) -> None:
        if str(path).endswith("run"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_chmod(path, mode)

    monkeypatch.setattr(os, "chmod", full)
    with pytest.raises(BadBundle, match=r"no space is left in .*bundles"):
        await put(node, GOOD)
    assert os.listdir(tmp_path / "bundles") == []


async def test_what_no_instance_has_used_for_a_week_is_removed(node: NodeBundles, tmp_path: Path) -> None:
    directory = tmp_path / "bundles"
    others = [archive(member(name)) for name in "abc"]
    for data in others:
        await put(node, data)
    await node.put(DIGEST, len(GOOD), 0, GOOD[:100])  # the manager was gone before the rest came
    (directory / ".aside-old").mkdir()
    long_ago = time.time() - UNUSED_S - 60
    for path in directory.iterdir():
        os.utime(path, (long_ago, long_ago))
    await node.put(digest_of(b"new"), 10, 0, b"x")
    assert node.find(digest_of(others[0])) is not None  # launched in it a moment ago
    await node.tidy([digest_of(others[1])])  # an instance runs in it
    expected = {digest_of(others[0]), digest_of(others[1]), f"{digest_of(b'new')}.part"}
    assert set(os.listdir(directory)) == expected
