"""A directory becomes an archive: the same for the same contents, whole, or with one clear reason why not.

What is unpacked of it on a node is the directory, less what is ignored.
"""

import os
import socket
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmgr.cluster import packing
from agentmgr.cluster.packing import CannotPack, look, look_and_pack
from agentmgr.node.bundles import NodeBundles


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "agent.py").write_text("import lib\n")
    return directory


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "archives").mkdir()
    return tmp_path / "archives"


def paths(directory: Path, *own: Path) -> list[str]:
    return [entry.path for entry in look(directory, own).entries]


def write(directory: Path, **files: str) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_touched_and_copied_files_make_the_same_archive_and_changed_ones_another(
    project: Path, into: Path
) -> None:
    _, packed = look_and_pack(project, into)
    assert packed.archive.stat().st_size == packed.size_bytes
    os.utime(project / "agent.py", (1, 1))
    (project / "agent.py").chmod(0o600)
    copy = project.with_name("copy")
    copy.mkdir()
    (copy / "agent.py").write_text("import lib\n")
    assert look_and_pack(project, into)[1] == packed == look_and_pack(copy, into)[1]
    (project / "agent.py").chmod(0o700)
    executable = look_and_pack(project, into)[1].digest
    (project / "agent.py").write_text("import lob\n")
    assert len({packed.digest, executable, look_and_pack(project, into)[1].digest}) == 3


def test_what_tools_make_again_and_what_the_file_names_is_left_out(project: Path) -> None:
    write(
        project,
        **{".git/config": "", "__pycache__/x.pyc": "", "lib/__init__.py": "", "lib/__pycache__/y.pyc": ""},
        **{"env/pyvenv.cfg": "", "env/bin/python": "", "node_modules/a.js": "", "data/big.csv": "1"},
        **{"data/small.csv": "1", "notes.db": "", "notes.db.d/cluster/ca.key": "secret"},
    )
    own = (project / "notes.db", project / "notes.db.d")
    assert paths(project, *own) == [
        "agent.py",
        "data",
        "data/big.csv",
        "data/small.csv",
        "lib",
        "lib/__init__.py",
    ]
    write(project, **{".agentmgrignore": "# ours\n*.csv\n!small.csv\n!node_modules/\n/lib/\n"})
    kept = [".agentmgrignore", "agent.py", "data", "data/small.csv", "node_modules", "node_modules/a.js"]
    assert paths(project, *own) == kept


def test_own_files_are_left_out_also_where_a_link_leads_to_the_directory(project: Path) -> None:
    write(project, **{"notes.db": ""})
    alias = project.with_name("alias")
    alias.symlink_to(project)
    assert paths(alias, project / "notes.db") == ["agent.py"] == paths(project, alias / "notes.db")


@pytest.mark.parametrize(
    ("contents", "said"), [(b"ok\n!\n", "line 2: '!' is no pattern"), (b"\xff\xfe", "it is not in UTF-8")]
)
def test_an_ignore_file_that_cannot_be_read_is_named(project: Path, contents: bytes, said: str) -> None:
    (project / ".agentmgrignore").write_bytes(contents)
    with pytest.raises(CannotPack, match=said):
        look(project)


def test_links_inside_are_packed_relative_and_links_out_are_refused(project: Path, tmp_path: Path) -> None:
    write(project, **{"lib/__init__.py": ""})
    (project / "here").symlink_to("lib/__init__.py")
    (project / "absolute").symlink_to(project / "lib")
    (project / "lib/nowhere").symlink_to("not-there")
    (project / "lib/around").symlink_to("../../project/agent.py")
    targets = {entry.path: entry.target for entry in look(project).entries if entry.target}
    assert targets == {"absolute": "lib", "here": "lib/__init__.py", "lib/nowhere": "not-there"} | {
        "lib/around": "../agent.py"
    }
    (tmp_path / "shared").mkdir()
    (tmp_path / "back").symlink_to("project")
    for target in ("../shared", str(tmp_path / "shared"), "lib/../../shared", "../back/agent.py"):
        (project / "out").symlink_to(target)
        with pytest.raises(
            CannotPack, match=rf"project/out leads out of the directory, to {target}, .*--ship DIR"
        ):
            look(project)
        (project / "out").unlink()
    (project / "out").symlink_to("../shared")
    (project / ".agentmgrignore").write_text("out\n")
    assert "out" not in paths(project)


def test_sockets_and_pipes_are_left_out_and_named(
    project: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(project / "pipe")
    monkeypatch.chdir(project)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    contents, _ = look_and_pack(project, into)
    assert contents.left_out == ("pipe", "socket")
    assert paths(project) == ["agent.py"]


def test_what_is_too_large_is_refused_without_reading_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "models").mkdir()
    with open(project / "models/weights", "wb") as file:
        file.truncate(201 * 2**20)
    with pytest.raises(
        CannotPack, match=r"201\.0 MiB, more than the 200\.0 MiB .*the most is in models/ \(201"
    ):
        look(project)
    (project / ".agentmgrignore").write_text("models\n")
    look(project)
    monkeypatch.setattr(packing, "MAX_ENTRIES", 1)
    with pytest.raises(CannotPack, match="holds more than 1 files"):
        look(project)


@pytest.mark.parametrize("change", ["grows", "shrinks", "goes", "becomes a link", "is saved anew"])
def test_a_file_that_changes_while_it_is_packed_is_read_again_and_then_named(
    project: Path, into: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, left = project / "agent.py", [1]

    def looked(directory: Path, own: tuple[Path, ...] = ()) -> packing.Contents:
        contents = look(directory, own)
        if left[0]:
            left[0] -= 1
            match change:
                case "grows" | "shrinks":
                    victim.write_text("x" * (contents.size_bytes + (1 if change == "grows" else -1)))
                case "goes":
                    victim.unlink()
                case "becomes a link":
                    victim.unlink()
                    victim.symlink_to("lib")
                case "is saved anew":
                    new = project / "new"
                    new.write_text("import lub\n")
                    new.rename(victim)
        return contents

    monkeypatch.setattr(packing, "look", looked)
    _, packed = look_and_pack(project, into)
    with tarfile.open(packed.archive) as archive:
        assert archive.getnames() == [entry.path for entry in look(project).entries]
    assert left == [0]

    if change == "grows":
        left[0] = 3
        with pytest.raises(CannotPack, match=r"agent\.py was written to meanwhile, 3 times") as caught:
            look_and_pack(project, into)
        assert not caught.value.lasting
    assert [each.name for each in into.iterdir()] == [f"{packed.digest}.tar"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(project: Path, into: Path) -> None:
    (project / "key").write_text("")
    (project / "key").chmod(0)
    with pytest.raises(CannotPack, match=r"project/key cannot be read .*\.agentmgrignore"):
        look_and_pack(project, into)


def test_what_is_no_directory_is_named(project: Path) -> None:
    with pytest.raises(CannotPack, match=r"agent\.py is no directory"):
        look(project / "agent.py")
    with pytest.raises(CannotPack, match="gone does not exist"):
        look(project / "gone")


characters = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
names = st.text(characters, min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..", ".agentmgrignore", "pyvenv.cfg")
)
trees = st.recursive(
    st.binary(max_size=3000) | names,  # a file, or a link to that name
    lambda inner: st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def build(at: Path, tree: object) -> None:
    match tree:
        case dict():
            at.mkdir()
            for name, inner in tree.items():
                build(at / name, inner)
        case bytes():
            at.write_bytes(tree)
        case str():
            at.symlink_to(tree)


def seen(directory: Path) -> dict[str, object]:
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else None
        if path.is_dir()
        else path.read_bytes()
        for path in sorted(directory.rglob("*"))
    }


def test_what_belongs_to_any_manager_or_node_is_left_out(project: Path) -> None:
    write(
        project,
        **{"agent_manager.db": "", "agent_manager.db-wal": "", "agent_manager.db.d/lock": ""},
        **{"agent_manager.db.d/cluster/key.pem": "secret", "notes.db": "", "conf.d/lock": "", "conf.d/x": ""},
        **{"node.d/node.json": "", "node.d/credentials/key.pem": "secret", "sub/other.db.d/lock": ""},
        **{
            "backup": "",
            "backup.d/cluster/ca-key.pem": "secret",
            "old.db": "",
            "old.db.d/sessions/svc.db": "",
        },
        **{"sub/other.db": "", "sub/node.json": ""},
    )
    kept = ["agent.py", "conf.d", "conf.d/lock", "conf.d/x", "notes.db", "sub", "sub/node.json"]
    assert paths(project) == kept


@settings(max_examples=25)
@given(st.dictionaries(names, trees, min_size=1, max_size=5), st.integers(1000, 9000))
async def test_what_is_unpacked_is_what_was_packed(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object], part: int
) -> None:
    base = tmp_path_factory.mktemp("round")
    build(base / "project", tree)
    _, packed = look_and_pack(base / "project", base)
    node = NodeBundles(base / "node")
    data, here = packed.archive.read_bytes(), 0
    while here < len(data):
        here = await node.put(packed.digest, len(data), here, data[here : here + part])
    unpacked = node.find(packed.digest)
    assert unpacked is not None
    assert seen(unpacked) == seen(base / "project")
    assert look_and_pack(unpacked, base)[1] == packed
