"""The console's files as they are sent, all in memory."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from html import escape
from pathlib import Path

from attrs import frozen

from .bundle import BundleError, compose

STATIC = Path(__file__).parent / "static"
ASSETS = "/console/assets"

_INDEX = "index.html"
_STYLE = "style.css"  #: is served with every other stylesheet after it, those of `styles` by their names
_PLACEHOLDER = "{{assets}}"  #: in the page: where its files are
_STATE = b"{{console}}"  #: in the page: what it has to know at first

#: Ends of names of files that no browser reads: of checkers; licences, which come with the package.
_NOT_SERVED = (".d.mts", ".d.ts", "tsconfig.json", ".LICENSE.txt")
_FOR_PEOPLE = re.compile(rb"/\*.*?\*/\n?|^[ \t]+", re.MULTILINE | re.DOTALL)  #: in a stylesheet
_TYPES = {
    "": "text/plain; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/plain; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@frozen
class Asset:
    content_type: str
    raw: bytes
    compressed: bytes | None  #: by gzip; None where that is not shorter
    digest: str  #: of `raw`

    @classmethod
    def of(cls, name: str, raw: bytes) -> Asset:
        """Raises `BundleError` for a kind of file that is not known."""
        content_type = _TYPES.get(Path(name).suffix)
        if content_type is None:
            raise BundleError(f"{name}:1: this kind of file is not served; known are {', '.join(_TYPES)}")
        compressed = gzip.compress(raw, mtime=0)
        return cls(content_type, raw, compressed if len(compressed) < len(raw) else None, _digest(raw))


@frozen
class Assets:
    page: Asset  #: not filled in yet, see `page_with`
    files: Mapping[str, Asset]  #: by their path under `prefix`
    prefix: str  #: `/console/assets/HASH`, which changes when any of them does

    def page_with(self, state: str) -> Asset:
        """The page, with a text in it that saves its first request."""
        return Asset.of(_INDEX, self.page.raw.replace(_STATE, escape(state).encode()))


def load(folder: Path = STATIC) -> Assets:
    """What the files in `folder` are served as. Raises `BundleError` for a mistake in them."""
    bundle = compose(folder)
    raw = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(_NOT_SERVED)
    }
    page = raw.pop(_INDEX, b"").decode()
    if _PLACEHOLDER not in page:
        raise BundleError(f"{_INDEX}:1: the page does not name its files by {_PLACEHOLDER}")
    if sheets := [name for name in raw if name.endswith(".css")]:
        raw[_STYLE] = _FOR_PEOPLE.sub(b"", b"\n".join(raw.pop(name) for name in sheets))
    files = {name: content for name, content in raw.items() if name not in bundle.modules}
    files["console.js"] = bundle.text.encode()
    assets = {name: Asset.of(name, content) for name, content in sorted(files.items())}
    everything = "\n".join([page, *(f"{name} {asset.digest}" for name, asset in assets.items())])
    prefix = f"{ASSETS}/{_digest(everything.encode())}"
    return Assets(Asset.of(_INDEX, page.replace(_PLACEHOLDER, prefix).encode()), assets, prefix)


@cache
def console() -> Assets:
    """The console of this package, which is made once."""
    return load()


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:20]
