"""What decides which programs run is believed only where no other user can write it."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentmgr import AgentManager
from agentmgr.core.restart import Cause
from agentmgr.errors import DatabaseUnusable, InvalidRequest
from agentmgr.manager import life
from agentmgr.models import ServiceConfig
from agentmgr.process import trust
from agentmgr.process.paths import RuntimePaths
from agentmgr.process.trust import distrust
from agentmgr.settings import load_settings
from agentmgr.storage import open_store, restore
from agentmgr.storage.store import Store
from agentmgr.supervisor.environment import of_child
from agentmgr.supervisor.launcher import CannotLaunch

ANOTHER = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    path.touch(0o600)
    return path


def given_away(path: Path) -> None:
    os.chown(path, ANOTHER, -1)


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def open_to_a_group(path: Path) -> None:
    os.chown(path, -1, ANOTHER)
    path.chmod(0o660)


SPOILT = [pytest.param(given_away, marks=as_root), open_to_all, pytest.param(open_to_a_group, marks=as_root)]


def test_an_own_file_is_believed_and_one_that_is_not_there(file: Path, tmp_path: Path) -> None:
    assert distrust(file) is None
    assert distrust(tmp_path / "none") is None
    assert distrust(Path(os.devnull)) is None, "a settings file of nothing"
    file.chmod(0o644)
    assert distrust(file) is None


@pytest.mark.parametrize("spoil", SPOILT)
def test_another_users_file_is_refused_by_name_with_the_flag_that_accepts_it(
    file: Path, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(file)
    said = distrust(file)
    assert said is not None
    assert said.startswith(str(file))
    assert f"--trust {file}" in said
    for accepted in (file, file.parent, f"/nowhere:{file}"):
        monkeypatch.setenv("AGENTMGR_TRUST", str(accepted))
        assert distrust(file) is None
    monkeypatch.setenv("AGENTMGR_TRUST", f"{file}x")
    assert distrust(file) is not None


@as_root
def test_a_group_of_the_owner_alone_may_write(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.chmod(0o664)
    assert distrust(file) is None, "root's own group"
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    os.chown(file, 54321, 54321)
    assert distrust(file) is None, "a container that has no names"
    os.chown(file, 54321, 54322)
    assert distrust(file) is not None


@as_root
def test_an_access_control_list_may_let_another_user_write(file: Path) -> None:
    file.chmod(0o660)
    no_one = 2**32 - 1
    owner, user, group = (0x01, 6, no_one), (0x02, 6, ANOTHER), (0x04, 0, no_one)
    mask, others = (0x10, 6, no_one), (0x20, 0, no_one)
    entries = (struct.pack("<HHI", *entry) for entry in (owner, user, group, mask, others))
    acl = struct.pack("<I", 2) + b"".join(entries)  # version 2, as in linux/posix_acl_xattr.h
    try:
        os.setxattr(file, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("the file system has no access control lists")
    assert "can be written by other users" in (distrust(file) or "")
    file.chmod(0o640)  # which narrows the list too
    assert distrust(file) is None


@as_root
def test_root_believes_only_roots_files_and_others_roots_too(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_away(file)
    assert distrust(file) is not None
    monkeypatch.setattr(os, "geteuid", lambda: ANOTHER)
    assert distrust(file) is None
    os.chown(file, 0, 0)
    assert distrust(file) is None


@as_root
def test_a_link_is_judged_and_what_it_leads_to(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(file)
    assert distrust(link) is None
    os.chown(link, ANOTHER, -1, follow_symlinks=False)
    assert str(link) in (distrust(link) or "")
    with pytest.raises(DatabaseUnusable, match=r"link\.db belongs to another user"):
        RuntimePaths.of(link).check()
    os.chown(link, 0, -1, follow_symlinks=False)
    given_away(file)
    assert distrust(link) is not None


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal", ".d"])
async def test_a_database_is_refused_with_all_that_stands_beside_it(
    tmp_path: Path, spoil: Callable[[Path], None], suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    async with open_store(path):
        pass
    beside = tmp_path / f"a.db{suffix}"
    beside.mkdir() if suffix == ".d" else beside.touch()
    spoil(beside)
    content = path.read_bytes()
    for use in (RuntimePaths.of(path).check, RuntimePaths.of(path).create):
        with pytest.raises(DatabaseUnusable, match=f"--trust {path}"):
            use()
    with pytest.raises(DatabaseUnusable, match=f"--trust {path}"):
        async with open_store(path):
            pass
    with pytest.raises(DatabaseUnusable, match=f"--trust {path}"):
        await restore(path, tmp_path / "restored.db")
    assert path.read_bytes() == content
    monkeypatch.setenv("AGENTMGR_TRUST", str(path))
    RuntimePaths.of(path).create()


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("named", [True, False])
def test_a_settings_file_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "agentmgr.toml"
    path.write_text('db_path = "planted.db"\n')
    environ = {"AGENTMGR_CONFIG": str(path)} if named else {}
    assert load_settings(environ=environ).db_path.endswith("planted.db")
    spoil(path)
    with pytest.raises(InvalidRequest, match=r"agentmgr\.toml .* --trust .*agentmgr\.toml"):
        load_settings(environ=environ)


@pytest.mark.parametrize("spoil", SPOILT)
def test_an_environment_file_is_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "env"
    path.write_text("LD_PRELOAD=/tmp/planted.so\n")
    config = ServiceConfig(agent_factory_path="a.py", env_file=str(path))
    assert of_child(config, {})["LD_PRELOAD"] == "/tmp/planted.so"
    spoil(path)
    with pytest.raises(CannotLaunch, match=f"--trust {path}") as caught:
        of_child(config, {})
    assert caught.value.cause is Cause.CANNOT_EXECUTE


@as_root
@pytest.mark.parametrize("waits", [True, False])
def test_a_file_that_another_user_puts_there_after_the_look_is_refused(
    file: Path, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_too_early(path: Path) -> None:
        given_away(path)

    monkeypatch.setattr(trust, "distrust", look_too_early)
    with pytest.raises(trust.Distrusted, match="belongs to another user"):
        trust.read_text(file, waits=waits)


@as_root
async def test_a_database_that_another_user_puts_there_after_the_look_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def put_there_just_before(path: Path) -> AsyncIterator[Store]:
        async with open_store(path) as store:
            given_away(path)
            yield store

    monkeypatch.setattr(life, "open_store", put_there_just_before)
    with pytest.raises(DatabaseUnusable, match="belongs to another user"):
        async with AgentManager(file, supervise=False):
            pass
