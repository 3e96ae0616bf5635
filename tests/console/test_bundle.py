"""Our modules become one: in the order of their imports, without them, and never by guessing."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmgr.console.bundle import Bundle, BundleError, compose
from agentmgr.console.files import STATIC, load

VENDOR = "export const html = 1, render = 2;\n"


def composed(tmp_path: Path, **modules: str) -> Bundle:
    """`views__list="…"` is the file `views/list.js`."""
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "preact.mjs").write_text(VENDOR)
    for name, text in modules.items():
        path = tmp_path / f"{name.replace('__', '/')}.js"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return compose(tmp_path)


def test_each_module_stands_after_those_that_it_imports(tmp_path: Path) -> None:
    bundle = composed(
        tmp_path,
        main='import {list} from "./views/list.js";\nimport { t } from "./i18n.js"\n\nlist(t);\n',
        views__list=(
            'import {html, render} from "../vendor/preact.mjs";\n'
            'import {\n  t,\n} from "../i18n.js";\n'
            "/** A list. */\nexport function list() { html(t, render); }\n"
        ),
        i18n='import {html} from "./vendor/preact.mjs";\nexport const t = () => html;\n',
    )
    assert bundle.modules == ("i18n.js", "views/list.js", "main.js")
    assert bundle.text == (
        'import {html, render} from "./vendor/preact.mjs";\n'
        "\n// i18n.js\nconst t = () => html;\n"
        "\n// views/list.js\nfunction list() { html(t, render); }\n"
        "\n// main.js\nlist(t);\n"
    )


def test_a_module_may_be_imported_for_what_it_does(tmp_path: Path) -> None:
    bundle = composed(tmp_path, main='import "./x.js";\nstart();', x="export async function start() {}")
    assert bundle.text == "// x.js\nasync function start() {}\n\n// main.js\nstart();\n"


def test_modules_that_import_each_other_stand_as_the_language_orders_them(tmp_path: Path) -> None:
    bundle = composed(
        tmp_path,
        main='import {a} from "./a.js";\na();',
        a='import {b} from "./b.js";\nexport function a() { b(); }',
        b='import {a} from "./a.js";\nexport function b() { a; }',
    )
    assert bundle.modules == ("b.js", "a.js", "main.js")


def test_words_that_only_look_like_statements_stay(tmp_path: Path) -> None:
    text = (
        'const later = () => import("./vendor/plot.mjs");\n'
        "  export const indented = `\n  import {x} from y`;\n"
        "import.meta.url;\nexported();\nimporting();\nconst address = new URL('a', import.meta.url);"
    )
    left = text.replace("\n  ", "\n")  # indentation is none of them
    assert composed(tmp_path, main=text).text == f"// main.js\n{left}\n"


def test_what_only_people_and_the_type_checker_read_is_left_out(tmp_path: Path) -> None:
    text = (
        '/** The module. */\n/** @typedef {import("./x.js").X} X */\n// why\n'
        "/**\n * @param {X} x\n */\nexport function f(/** @type {X} */ x) {\n"
        "  /** @type {X} */\n  const y = x;\n  return /** @type {X} */ (y); // why\n}\n"
        "/** @type {X} */ let z;\n/** Not this one. */\n"
    )
    left = "function f(x) {\nconst y = x;\nreturn (y); // why\n}\nlet z;\n"
    assert composed(tmp_path, main=text).text == f"// main.js\n{left}"


def test_what_is_imported_while_the_page_runs_stays_a_file(tmp_path: Path) -> None:
    bundle = composed(tmp_path, main='import("./zh.js");', zh="export const zh = {};")
    assert bundle.modules == ("main.js",)


@pytest.mark.parametrize(
    ("modules", "problem"),
    [
        ({"x": ""}, "main.js:1: there is no such module"),
        ({"main": '\nimport {a} from "./x.js";'}, "main.js:2: there is no module x.js"),
        ({"main": 'import {a} from "./x.js";', "x": "const a = 1;"}, "main.js:1: x.js does not export a"),
        ({"main": 'import {a} from "./vendor/x.mjs";'}, "main.js:1: vendor/x.mjs does not exist"),
        ({"main": 'import {a as b} from "./x.js";', "x": "export const a = 1;"}, "main.js:1: 'a as b' is no"),
        ({"main": 'import * as x from "./x.js";'}, "main.js:1: an import is"),
        ({"main": 'import x from "./x.js";'}, "main.js:1: an import is"),
        ({"main": 'import {a} from "preact";'}, "main.js:1: an import is"),
        ({"main": 'import {a} from "./x.js"; a();'}, "main.js:1: an import is"),
        ({"main": "let a;\n\nexport default a;"}, "main.js:3: `export` stands before"),
        ({"main": "const a = 1;\nexport {a};"}, "main.js:2: `export` stands before"),
        ({"main": 'export * from "./x.js";'}, "main.js:1: `export` stands before"),
        ({"main": "const {a, b} = x;"}, "main.js:1: a declaration of the top level has one name"),
        ({"main": "let a;\nfunction a() {}"}, "main.js:2: a is declared in line 1 already"),
        ({"main": 'import "./x.js";\nlet a;', "x": "class a {}"}, "main.js:2: a is declared in x.js already"),
        (
            {"main": 'import {html} from "./vendor/preact.mjs";\nlet html;'},
            "main.js:1: html is the name of something in main.js already",
        ),
        (
            {"main": "", "zh": 'import {t} from "./i18n.js";', "i18n": "export const t = 1;"},
            "zh.js:1: main.js does not import this module, so it must import none of ours",
        ),
    ],
)
def test_what_breaks_the_rules_is_refused_with_its_line(
    tmp_path: Path, modules: dict[str, str], problem: str
) -> None:
    with pytest.raises(BundleError) as refused:
        composed(tmp_path, **modules)
    assert str(refused.value).startswith(problem)


def test_the_console_of_this_package_composes() -> None:
    assert load(STATIC).files["console.js"].raw


def test_the_same_files_are_served_under_the_same_name_and_others_under_another(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<script src='{{assets}}/console.js'></script>")
    (tmp_path / "main.js").write_text("let a;")
    first = load(tmp_path)
    assert load(tmp_path) == first
    assert first.page.raw.decode() == f"<script src='{first.prefix}/console.js'></script>"
    (tmp_path / "style.css").write_text("p {}")
    assert load(tmp_path).prefix != first.prefix


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [("index.html", "<p>", "index.html:1: the page does not"), ("x.exe", "", "x.exe:1: this kind of file")],
)
def test_a_file_that_cannot_be_served_is_refused(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / "index.html").write_text("{{assets}}")
    (tmp_path / "main.js").write_text("let a;")
    (tmp_path / name).write_text(text)
    with pytest.raises(BundleError, match=problem):
        load(tmp_path)
