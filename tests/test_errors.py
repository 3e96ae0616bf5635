"""The tree of errors: drawn as it is, each with a code of its own that leads back to it."""

import inspect
import re

import pytest

from agentmgr import errors
from agentmgr.errors import AgentManagerError, FieldProblem, InvalidRequest, NameTaken

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, AgentManagerError) and value.__module__ == errors.__name__
]


def drawn_tree() -> dict[str, str | None]:
    """Each name in the docstring's drawing, with its parent."""
    found: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"((?:│   |    )*)(?:├── |└── )?([A-Z]\w+)(?:  |$)", line.removeprefix("    "))
        if not match:
            continue
        branch = "├── " in line or "└── " in line
        depth = len(match[1]) // 4 + branch
        del above[depth:]
        found[match[2]] = above[-1] if above else None
        above.append(match[2])
    return found


def test_the_drawing_shows_the_classes_as_they_are():
    actual = {}
    for cls in CLASSES:
        parent = next((base for base in cls.__mro__[1:] if base in CLASSES), None)
        actual[cls.__name__] = parent.__name__ if parent else None
    assert drawn_tree() == actual
    assert len(actual) > 20


def test_each_code_is_of_one_class_and_fit_for_programs():
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_code_leads_back_to_its_class(cls):
    problem = FieldProblem("config.port", "is odd")
    error = AgentManagerError.from_code(cls.code, "a sentence", fields=[problem])
    assert type(error) is cls
    assert (error.message, str(error), error.fields) == ("a sentence", "a sentence", (problem,))


def test_a_private_subclass_does_not_take_its_parents_code():
    class Private(NameTaken):
        pass

    assert type(AgentManagerError.from_code(NameTaken.code, "a sentence")) is NameTaken


def test_a_code_from_a_newer_peer_becomes_the_base_class():
    error = AgentManagerError.from_code("not_known_yet", "a sentence")
    assert type(error) is AgentManagerError


@pytest.mark.parametrize("cls", CLASSES)
def test_each_says_what_it_means(cls):
    assert cls.__doc__


def test_some_are_what_python_callers_expect():
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(errors.NotFound, LookupError)
    assert not issubclass(NameTaken, ValueError)


def test_the_leaves_of_a_group_are_in_the_order_of_its_text_and_an_exception_is_its_own():
    a, b, c = ValueError(), KeyError(), OSError()
    assert list(errors.leaves(ExceptionGroup("", [a, ExceptionGroup("", [b]), c]))) == [a, b, c]
    assert list(errors.leaves(a)) == [a]
