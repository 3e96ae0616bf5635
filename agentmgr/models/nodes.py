"""Nodes of a cluster: what they are labelled with, which of them a service may run on, and who is alive.

A selector has the form of Ray's, `KEY=CONDITION`:

    zone=b              the label `zone` is b
    zone=!b             it is not b, or the node has no such label
    zone=in(a,b)        it is one of these
    zone=!in(a,b)       it is none of these, or the node has no such label

Every node has the label `node`, which is its name. Keys and values are letters, digits and `-_.`; a key may
have one `/` (`example.com/zone`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cache
from typing import Any

from attrs import Attribute, frozen

from ..errors import InvalidRequest
from .fields import invalid, rule

NAME_LABEL = "node"  #: the key of the label that every node has: its name

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:{_WORD}/)?{_WORD}")
_VALUE = re.compile(_WORD)
_SELECTOR = rf"(?:{_WORD}/)?{_WORD}=!?(?:{_WORD}|in\( *{_WORD} *(?:, *{_WORD} *)*\))"
_NUMBER = r"(?:[0-9]{1,9}(?:\.[0-9]{1,6})?)"
_AMOUNT = re.compile(_NUMBER)
_FORMS = "KEY=VALUE, KEY=!VALUE, KEY=in(A,B) or KEY=!in(A,B)"
_LETTERS = "1 to 63 letters, digits and '-_.', with a letter or digit at both ends"


class NodeState(StrEnum):
    """Whether a node can be reached, and whether new instances are placed there."""

    LINKED = "linked"
    CORDONED = "cordoned"  #: linked, and serves on; nothing new is placed there
    SILENT = "silent"  #: its link is down, and it may come back: its instances are taken to live on
    LOST = "lost"  #: it was silent for too long, or is surely gone: its instances are started elsewhere


class Spread(StrEnum):
    """How the instances of a service are spread over the nodes that may run them."""

    NODES = "nodes"
    PACK = "pack"


class OnNodeLoss(StrEnum):
    """What follows for an instance whose node is lost."""

    REPLACE = "replace"
    WAIT = "wait"


def label(text: str) -> tuple[str, str]:
    """Key and value of a label, from `KEY=VALUE`. Raises `InvalidRequest`."""
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest(f"a label is KEY=VALUE, not {text!r}")
    if not _KEY.fullmatch(key):
        raise InvalidRequest(f"the key of a label has {_LETTERS}, not {key!r}")
    if not _VALUE.fullmatch(value):
        raise InvalidRequest(f"the value of label {key} has {_LETTERS}, not {value!r}")
    return key, value


@frozen
class Selector:
    """A condition on one label."""

    key: str
    values: frozenset[str]
    negated: bool = False

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Raises `InvalidRequest`, which names the forms that there are."""
        return _parsed(text)

    def matches(self, labels: Mapping[str, str]) -> bool:
        return (labels.get(self.key) in self.values) is not self.negated

    @property
    def one_node(self) -> str | None:
        """The name of the only node that it can match; None: it can match several."""
        if self.key != NAME_LABEL or self.negated or len(self.values) != 1:
            return None
        return next(iter(self.values))

    def __str__(self) -> str:
        values = sorted(self.values)
        condition = values[0] if len(values) == 1 else f"in({','.join(values)})"
        return f"{self.key}={'!' if self.negated else ''}{condition}"


@cache
def _parsed(text: str) -> Selector:
    key, equals, condition = text.partition("=")
    if not equals:
        raise InvalidRequest(f"a label selector is {_FORMS}, not {text!r}")
    if not _KEY.fullmatch(key):
        raise InvalidRequest(f"the key of a label has {_LETTERS}, not {key!r}")
    negated, condition = condition.startswith("!"), condition.removeprefix("!")
    is_list = condition.startswith("in(") and condition.endswith(")")
    values = [v.strip(" ") for v in condition[3:-1].split(",")] if is_list else [condition]
    for value in values:
        if not _VALUE.fullmatch(value):
            raise InvalidRequest(
                f"a label selector is {_FORMS}, and a value has {_LETTERS}: {value!r} in {text!r} does not"
            )
    return Selector(key, frozenset(values), negated)


def selectors(texts: Iterable[str]) -> tuple[Selector, ...]:
    """All of them must match. Raises `InvalidRequest`."""
    return tuple(Selector.parse(text) for text in texts)


def one_node(texts: Iterable[str]) -> str | None:
    """The name of the only node that these selectors can match; None: they can match several."""
    return next((name for selector in selectors(texts) if (name := selector.one_node)), None)


@rule(items={"type": "string", "pattern": f"^{_SELECTOR}$"})
def check_selectors(_: Any, attribute: Attribute[Any], value: Iterable[str]) -> None:
    for text in value:
        try:
            Selector.parse(text)
        except InvalidRequest as problem:
            raise invalid(attribute.name, f"cannot be read: {problem}") from None


def resources(texts: Iterable[str]) -> dict[str, float]:
    """Names and amounts, from words as `licence=1`. Raises `InvalidRequest`."""
    found: dict[str, float] = {}
    for text in texts:
        name, equals, amount = text.partition("=")
        if not (equals and _KEY.fullmatch(name) and _AMOUNT.fullmatch(amount)):
            raise InvalidRequest(f"a resource is NAME=NUMBER, as in licence=1, not {text!r}")
        if name in found:
            raise InvalidRequest(f"the resource {name} is given twice")
        found[name] = float(amount)
    return found


@rule(items={"type": "string", "pattern": f"^(?:{_WORD}/)?{_WORD}={_NUMBER}$"})
def check_resources(_: Any, attribute: Attribute[Any], value: Iterable[str]) -> None:
    try:
        resources(value)
    except InvalidRequest as problem:
        raise invalid(attribute.name, f"cannot be read: {problem}") from None
