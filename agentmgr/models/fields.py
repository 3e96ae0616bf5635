"""What a field is for and what it may hold: options, validators, converters, fresh ids, the time."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

from attrs import Attribute, field, fields, frozen

from ..errors import FieldProblem, InvalidRequest


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_id(kind: str) -> str:
    """A fresh id such as `svc_3f0c…`; 64 random bits, so ids never meet."""
    return f"{kind}_{secrets.token_hex(8)}"


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
ID = re.compile(r"[a-z]+_[0-9a-f]{16}")  # as `new_id` makes them; a name must never be taken for one
TAG = re.compile(r"[^\s,\x00-\x1f\x7f]{1,64}")

Check = Callable[[Any, "Attribute[Any]", Any], None]


def rule(**schema: Any) -> Callable[[Check], Check]:
    """Attaches to a validator, as `schema`, what it lets pass, as far as JSON Schema can express it."""

    def attach(check: Check) -> Check:
        vars(check)["schema"] = schema  # not a wrapper: some classes have dozens of fields to validate
        return check

    return attach


@frozen
class Option:
    """What is said of a field wherever it can be given.

    The command line, the API's schema and the process that hosts an agent are made of this and of the field's
    type, default and validator: none of them has a list of options.
    """

    help: str  #: a sentence or two; other fields in backticks, which the command line shows as their flags
    unset: str = ""  #: what None means
    metavar: str | None = None  #: `FILE`, `DIR` and `SERVICE` are completed by the shell
    flag: str = ""  #: where it is not the field's name
    unit: str = ""  #: of a number whose name does not end with it; with a fraction it is seconds otherwise
    bare: str = ""  #: what the flag means without a value, if it may have none
    argument: bool = False  #: the command line has an argument for it, and no flag
    live: bool = False  #: running instances need no restart for it

    @classmethod
    def of(cls, attribute: Attribute[Any]) -> Option | None:
        found: Option | None = attribute.metadata.get("option")
        return found


def about(help: str, **details: Any) -> dict[str, Option]:
    """The `metadata` of a field that is an `Option`."""
    return {"option": Option(help, **details)}


def option(default: Any, help: str, check: Check | None = None, **details: Any) -> Any:
    """A field that is an `Option`; with a converter it is `field(…, metadata=about(…))`, as mypy needs it."""
    return field(default=default, validator=check, metadata=about(help, **details))


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def type_of(kind: type[Any], name: str) -> Any:
    """The type of a field's values, apart from None."""
    hint = _hints(kind)[name]
    members = [member for member in get_args(hint) if member is not NoneType]
    return members[0] if len(members) < len(get_args(hint)) else hint


def as_in(kind: type[Any], name: str) -> Any:
    """A field like that of another class: the same default, the same rules."""
    like = getattr(fields(kind), name)
    return field(
        default=like.default, validator=like.validator, converter=like.converter, metadata=like.metadata
    )


def searcher(text: str, *, case_sensitive: bool = True) -> Callable[[str], bool]:
    """Whether a text matches the regular expression somewhere. Raises ValueError, with the reason."""
    # `re` takes exponential time on some patterns, and the text that meets them is a stranger's. RE2 takes
    # linear time on all that it accepts; it refuses back references and lookaround for that.
    import re2

    options = re2.Options()
    options.case_sensitive = case_sensitive
    options.log_errors = False
    try:
        search = re2.compile(text, options).search
    except re2.error as error:
        reason = error.args[0] if error.args else error
        raise ValueError(reason.decode(errors="replace") if isinstance(reason, bytes) else reason) from None
    return lambda value: search(value) is not None


def invalid(name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {problem}", fields=[FieldProblem(name, problem)])


def _whole(pattern: re.Pattern[str]) -> str:
    """As JSON Schema has it, where a pattern is looked for anywhere in the value."""
    return f"^{pattern.pattern}$"


@rule(pattern=_whole(NAME), **{"not": {"pattern": _whole(ID)}})
def check_name(_: Any, attribute: Attribute[Any], value: str) -> None:
    if ID.fullmatch(value):
        raise invalid(attribute.name, f"must not look like an id: {value!r}")
    if not NAME.fullmatch(value):
        raise invalid(
            attribute.name,
            f"must be 1 to 63 of letters, digits and '._-', beginning with a letter or digit, not {value!r}",
        )


@rule(maxLength=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")
def check_printable(_: Any, attribute: Attribute[Any], value: str) -> None:
    # Names and descriptions reach log lines and terminals: no line breaks, no escape sequences.
    if not value.isprintable() or len(value) > 1000:
        raise invalid(attribute.name, "must be at most 1000 printable characters on one line")


@rule(items={"type": "string", "pattern": _whole(TAG)})
def check_tags(_: Any, attribute: Attribute[Any], value: Iterable[str]) -> None:
    for tag in value:
        if not TAG.fullmatch(tag):
            raise invalid(
                attribute.name, f"must have no spaces, no commas and 64 characters at most: {tag!r}"
            )


@rule(items={"type": "string", "pattern": r"^[^=\x00]+$"})
def check_variable_names(_: Any, attribute: Attribute[Any], value: Iterable[str]) -> None:
    for name in value:
        if not name or "=" in name or "\0" in name:
            raise invalid(attribute.name, f"must have names alone, not {name!r}; values are in `env`")


def between(low: float, high: float, unit: str = "") -> Check:
    @rule(minimum=low, maximum=high)
    def check(_: Any, attribute: Attribute[Any], value: float | None) -> None:
        if value is not None and not low <= value <= high:
            raise invalid(attribute.name, f"must be from {low:.12g} to {high:.12g}{unit}, not {value!r}")

    return check


def up_to(most: float) -> Check:
    """More than nothing."""

    @rule(exclusiveMinimum=0, maximum=most)
    def check(_: Any, attribute: Attribute[Any], value: float | None) -> None:
        if value is not None and not 0 < value <= most:
            raise invalid(attribute.name, f"must be more than 0 and at most {most:.12g}, not {value!r}")

    return check


def to_words(value: Iterable[str] | str) -> tuple[str, ...]:
    if isinstance(value, str):  # tuple("abc") would be ('a', 'b', 'c')
        raise InvalidRequest(f"a list of strings is needed here, not the string {value!r}")
    return tuple(value)


_NO_WORDS = frozenset[str]()  #: one for all: an empty set takes 216 bytes


def to_word_set(value: Iterable[str] | str) -> frozenset[str]:
    return frozenset(to_words(value)) or _NO_WORDS


PORT = between(1, 65535)
DAY_S = 86400.0


_NO_NUL = {"type": "string", "pattern": r"^[^\x00]*$"}


@rule(pattern=_NO_NUL["pattern"])
def check_text(_: Any, attribute: Attribute[Any], value: str | None) -> None:
    """For what becomes a path or a word of the system, where a NUL ends the text or raises `ValueError`."""
    if value is not None and "\0" in value:
        raise invalid(attribute.name, "must have no NUL characters")


@rule(items=_NO_NUL)
def check_texts(_: Any, attribute: Attribute[Any], value: Iterable[str]) -> None:
    if any("\0" in text for text in value):
        raise invalid(attribute.name, "must have no NUL characters")


@rule(items=_NO_NUL, prefixItems=[{**_NO_NUL, "minLength": 1}])
def check_command(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    if value and not value[0]:
        raise invalid(attribute.name, "must begin with the program to run, not with an empty word")
    check_texts(_, attribute, value)


@rule(
    propertyNames={"pattern": r"^[^=\x00]+$"},
    additionalProperties=_NO_NUL,
)
def check_environment(_: Any, attribute: Attribute[Any], value: Mapping[str, str]) -> None:
    for name, text in value.items():
        if not name or "=" in name or "\0" in name:
            raise invalid(attribute.name, f"must have names without '=' and NUL characters, not {name!r}")
        if "\0" in text:
            raise invalid(attribute.name, f"must have no NUL characters in {name}")


_MODULES = r"[^\W\d]\w*(\.[^\W\d]\w*)*"  # Python's names, with dots between


@rule(pattern=rf"^{_MODULES}(, *{_MODULES})*$")
def check_preload(_: Any, attribute: Attribute[Any], value: str) -> None:
    for name in value.split(","):
        if not all(word.isidentifier() for word in name.strip().split(".")):
            raise invalid(
                attribute.name, f"must be auto, off, or names of modules with commas between, not {value!r}"
            )


def is_url(hook: str) -> bool:
    """Whether `on_failure` is posted to a URL; else it is a command."""
    return hook.lower().startswith(("http://", "https://"))


def check_hook(_: Any, attribute: Attribute[Any], value: str | None) -> None:
    if value is None:
        return
    try:
        words, url = shlex.split(value), urlsplit(value)
        port = url.port
    except ValueError as error:
        raise invalid(attribute.name, f"cannot be read: {error}") from None
    if not words or not value.isprintable():
        raise invalid(attribute.name, "must be a command or an http(s) URL, on one line")
    if not url.scheme or "://" not in words[0]:
        return
    if url.scheme not in ("http", "https"):
        raise invalid(attribute.name, f"must be a command or an http(s) URL, not {value!r}")
    if not url.hostname or port == 0:
        raise invalid(attribute.name, f"has no host, or no port that can be dialled: {value!r}")
    if not value.isascii() or " " in value:
        raise invalid(
            attribute.name,
            f"must have its special characters encoded (%20, %C3%A4; of a host xn--…): {value!r}",
        )
