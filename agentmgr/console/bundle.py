"""Our modules made into one: five files would cost a browser five requests, one after the other.

The modules stand one after another, each after those that it imports, as the language itself orders them.
So they share one scope, and imports among them fall away. No parser is needed for that, given these rules for
our modules; one that breaks them is refused:

* A statement `import` or `export` begins its line, and no other line begins with these words.
* Imports are `import {a, b} from "./x.js"` or `import "./x.js"`, relative to the module that imports; from
  `vendor` they are kept, one for each file, before everything else.
* `export` stands before a declaration: no default, no list, nothing exported again. `as` renames nothing.
* What only people and the checker read is left out, a quarter of the bytes: comments with lines of their own,
  `/** @type … */` in a line, indentation. So no line of a text looks like a comment or needs its indentation.
* A name of the top level is declared once in all modules, and a declaration there takes nothing apart.

A module to which no import leads from `main.js` stays a file, for `import(…)` while the page runs; it
imports none of ours, for they are no files any more. A path in such an `import(…)` is relative to the
composed module.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import Factory, define, frozen

_STATEMENT = re.compile(r"^(import|export)\b(?!\s*[(.])", re.MULTILINE)
_IMPORT = re.compile(r"""import\s*(?:\{([^{}]*)\}\s*from\s*)?(["'])(\.[^"'\n]*)\2[ \t]*;?[ \t]*(?:\n|\Z)""")
_EXPORT = re.compile(r"export (?=(?:async )?function\b|const\b|let\b|class\b)")
_LEFT_OUT = re.compile(
    r"^[ \t]*(?:/\*\*(?:(?!\*/).)*\*/|//[^\n]*)[ \t]*\n|/\*\* @(?:type|param)\b(?:(?!\*/).)*\*/ ?|^[ \t]+",
    re.MULTILINE | re.DOTALL,
)
_DECLARATION = re.compile(
    r"^(export )?(?:(?:async )?function\b\s*\*?|const\b|let\b|var\b|class\b)[ \t]*([\w$]*)", re.MULTILINE
)
_NAME = re.compile(r"[A-Za-z_$][\w$]*")
_VENDOR = "vendor/"


class BundleError(Exception):
    """A module cannot be composed; the message begins with its file and line."""


@frozen
class Bundle:
    text: str
    modules: tuple[str, ...]  #: the paths of those that are in it, in their order


@define
class _Module:
    path: str
    text: str
    imports: list[tuple[str, tuple[str, ...], int]] = Factory(list)  #: a path, names and the line
    declared: dict[str, int] = Factory(dict)  #: the line of each name
    exported: set[str] = Factory(set)
    body: str = ""  #: without imports, the word `export`, and comments that are left out

    def error(self, line: int, problem: str) -> BundleError:
        return BundleError(f"{self.path}:{line}: {problem}")


def compose(folder: Path, main: str = "main.js") -> Bundle:
    """One module of `main` and of all that it imports. Raises `BundleError`."""
    modules = {
        path: _read(path, (folder / path).read_text(encoding="utf-8"))
        for path in sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*.js"))
        if not path.startswith(_VENDOR)
    }
    if main not in modules:
        raise BundleError(f"{main}:1: there is no such module")
    for module in modules.values():
        for path, names, line in module.imports:
            _check_import(folder, modules, module, path, names, line)
    composed = list(_in_order(modules, main, set()))
    paths = {module.path for module in composed}
    for module in modules.values():
        for path, _, line in module.imports:
            if module.path not in paths and not path.startswith(_VENDOR):
                raise module.error(
                    line, f"{main} does not import this module, so it must import none of ours"
                )
    vendors = _check_names(composed)
    heads = [
        f'import {{{", ".join(sorted(names))}}} from "./{path}";' for path, names in sorted(vendors.items())
    ]
    bodies = [f"// {module.path}\n{module.body.strip()}" for module in composed]
    return Bundle("\n\n".join(["\n".join(heads), *bodies]).strip() + "\n", tuple(m.path for m in composed))


def _read(path: str, text: str) -> _Module:
    module = _Module(path, text)
    body: list[str] = []
    done = 0
    for found in _STATEMENT.finditer(text):
        line = _line(text, found.start())
        body.append(text[done : found.start()])
        if found[1] == "export":
            if (export := _EXPORT.match(text, found.start())) is None:
                raise module.error(line, "`export` stands before a function, const, let or class, no default")
            done = export.end()
            continue
        if (statement := _IMPORT.match(text, found.start())) is None:
            raise module.error(line, 'an import is `import {a, b} from "./x.js"` or `import "./x.js"`')
        names = tuple(name.strip() for name in (statement[1] or "").split(",") if name.strip())
        for name in names:
            if not _NAME.fullmatch(name):
                raise module.error(line, f"{name!r} is no name: nothing is renamed by an import")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), statement[3]))
        module.imports.append((target, names, line))
        done = statement.end()
    body.append(text[done:])
    module.body = _LEFT_OUT.sub("", "".join(body))
    for declaration in _DECLARATION.finditer(text):
        line, name = _line(text, declaration.start()), declaration[2]
        if not name:
            raise module.error(line, "a declaration of the top level has one name, and takes nothing apart")
        if name in module.declared:
            raise module.error(line, f"{name} is declared in line {module.declared[name]} already")
        module.declared[name] = line
        if declaration[1]:
            module.exported.add(name)
    return module


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _check_import(
    folder: Path, modules: dict[str, _Module], module: _Module, path: str, names: tuple[str, ...], line: int
) -> None:
    if path.startswith(_VENDOR):
        if not (folder / path).is_file():
            raise module.error(line, f"{path} does not exist")
        return
    if path not in modules:
        raise module.error(line, f"there is no module {path}")
    for name in names:
        if name not in modules[path].exported:
            raise module.error(line, f"{path} does not export {name}")


def _in_order(modules: dict[str, _Module], path: str, seen: set[str]) -> Iterator[_Module]:
    """Those that it imports, and then itself. In a circle, whose import came first."""
    seen.add(path)
    for imported, _, _ in modules[path].imports:
        if imported in modules and imported not in seen:
            yield from _in_order(modules, imported, seen)
    yield modules[path]


def _check_names(composed: list[_Module]) -> dict[str, set[str]]:
    """What is imported of each file of `vendor`. Raises `BundleError` where two things have one name."""
    origin: dict[str, str] = {}  # of each name of the top level
    vendors: dict[str, set[str]] = {}
    for module in composed:
        for name, line in module.declared.items():
            if name in origin:
                raise module.error(
                    line, f"{name} is declared in {origin[name]} already, and all share one scope"
                )
            origin[name] = module.path
    for module in composed:
        for path, names, line in module.imports:
            if path.startswith(_VENDOR):
                vendors.setdefault(path, set()).update(names)
                for name in names:
                    if origin.setdefault(name, path) != path:
                        raise module.error(line, f"{name} is the name of something in {origin[name]} already")
    return vendors
