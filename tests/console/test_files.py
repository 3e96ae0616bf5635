"""What is checked in: how much it is, that it is what npm gave, and that it reads as the house's files do."""

import gzip
from hashlib import sha256

import pytest

from agentmgr.console.bundle import compose
from agentmgr.console.files import STATIC, load

KIB = 1024

# Of `.ci/vendor`, which prints them. With a newer version of one, both change.
VENDOR = {
    "ansi_up.LICENSE.txt": "605a7882fd6b556965dd1026fc55e3a5afa52b73b35d4e12fe9b4cf25b32d21f",
    "ansi_up.mjs": "554a7d9ca4f3721db1f14941f92dc75b254f57d4b7bffeb84eea1174aa160780",
    "htm.LICENSE.txt": "740725f7252e750af735d0028cc534970772f513331e9f68150fede8fb3ce00f",
    "preact.mjs": "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7",
    "preact.LICENSE.txt": "1fe6958409c8c257a70c587a18b6f7f412b179b456630790d30b2ec9a8e4b7d4",
}
LICENCES = {"ansi_up": "MIT", "htm": "Apache License", "preact": "MIT"}


def test_the_console_stays_small():
    assets = load()
    raw = [assets.page.raw, *(one.raw for one in assets.files.values())]
    assert sum(map(len, raw)) <= 320 * KIB
    assert sum(len(gzip.compress(one, mtime=0)) for one in raw) <= 100 * KIB


def test_what_is_of_others_is_what_they_published():
    found = {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in (STATIC / "vendor").iterdir()
        if path.suffix != ".mts"  # these are ours
    }
    assert found == VENDOR


@pytest.mark.parametrize(("name", "licence"), LICENCES.items())
def test_the_licence_of_each_is_there(name, licence):
    assert licence in (STATIC / "vendor" / f"{name}.LICENSE.txt").read_text()


def test_each_module_is_part_of_the_page():
    composed = set(compose(STATIC).modules)
    assert {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*.js")} == composed


def test_each_file_of_ours_is_short():
    ours = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}
    for name in VENDOR:
        del ours[f"vendor/{name}"]
    long = {name: count for name, path in ours.items() if (count := len(path.read_text().splitlines())) > 300}
    assert long == {}
