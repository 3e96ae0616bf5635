"""What is shipped: the package, whole, with the dependencies that it imports, and nothing else."""

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import agentmgr

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "agentmgr"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def files_of(folder):
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", directory], cwd=ROOT, check=True)
    return directory


def test_the_wheel_has_the_package_and_nothing_else(built):
    [path] = built.glob("*.whl")
    names = set(zipfile.ZipFile(path).namelist())
    inside = {name for name in names if not name.startswith("agentmgr_trio-")}
    assert inside == files_of("agentmgr")
    assert {"agentmgr/py.typed", "agentmgr/storage/migrations/0001_initial.sql"} <= inside
    assert {
        f"agentmgr/console/static/{name}" for name in ("index.html", "main.js", "vendor/preact.mjs")
    } <= inside
    assert {name.partition("/")[2] for name in names - inside} == {
        "METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip


def test_the_sdist_has_what_builds_and_tests_it(built):
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = files_of("agentmgr") | files_of("tests") | files_of("examples")
    top = {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"}
    assert names == folders | top | {"PKG-INFO", ".gitignore"}


def test_the_version_stands_in_one_place(built):
    [path] = built.glob("*.whl")
    assert path.name.startswith(f"agentmgr_trio-{agentmgr.__version__}-")
    places = [
        path for path in (*PACKAGE.rglob("*.py"), ROOT / "pyproject.toml")
        if re.search(rf"[\"']{re.escape(agentmgr.__version__)}[\"']", path.read_text())
    ]  # fmt: skip
    assert places == [PACKAGE / "version.py"]


def imported(path):
    """The packages, other than this and Python's, that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_what_is_imported_is_declared_and_the_reverse():
    names = {name for path in PACKAGE.rglob("*.py") for name in imported(path)}
    names -= {"agentmgr", "_typeshed", *sys.stdlib_module_names}  # type checkers bring that one
    names.remove("opentelemetry")  # a namespace of several, of the extra `otel`
    names.remove("ray")  # of the extra `ray`, which development does without
    distributions = packages_distributions()
    needed = {distributions[name][0].lower().replace("_", "-") for name in names}
    extras = PROJECT["optional-dependencies"]
    imported_extras = (extras[name] for name in ("reload", "cluster", "redis"))
    declared = {Requirement(line).name for line in chain(PROJECT["dependencies"], *imported_extras)}
    assert needed == declared
