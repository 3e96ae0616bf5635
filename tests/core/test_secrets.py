"""Which values of an environment are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.secrets import HIDDEN, restored, restored_hook, shown, shown_hook
from agentmgr.errors import InvalidRequest

NAMES = st.sampled_from(["OPENAI_API_KEY", "GITHUB_TOKEN", "db_password", "LANG", "PORT", "HOME"])


def test_every_value_is_hidden_but_those_that_are_declared_public() -> None:
    env = {"OPENAI_API_KEY": "sk-1", "DB_PASS": "x", "CONN": "Pwd=x", "LANG": "zh", "EMPTY": ""}
    assert shown(env, {"LANG", "ABSENT"}) == dict.fromkeys(env, HIDDEN) | {"LANG": "zh"}


@given(st.dictionaries(NAMES, st.text(max_size=5)))
def test_what_was_shown_and_is_given_back_means_what_it_was(env: dict[str, str]) -> None:
    assert restored(shown(env, {"LANG"}), env) == env


@pytest.mark.parametrize(
    ("hook", "shown"),
    [
        ("https://hooks.example/services/T0?x=1", "https://hooks.example/***"),
        ("http://me:key@127.0.0.1:8000", "http://127.0.0.1:8000/***"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/"),
        ("notify-send failed", "notify-send failed"),
        (None, None),
    ],
)
def test_of_a_hook_that_is_a_url_only_the_host_is_shown(hook: str | None, shown: str | None) -> None:
    assert shown_hook(hook) == shown
    assert restored_hook(shown, hook) == hook, "given back, it means what it was"
    assert restored_hook("https://new.example/x", hook) == "https://new.example/x"
    with pytest.raises(InvalidRequest, match="on_failure hides its address"):
        restored_hook("https://another.example/***", hook)


def test_a_new_value_is_a_new_value() -> None:
    assert restored({"KEY": "new"}, {"KEY": "old"}) == {"KEY": "new"}


def test_a_hidden_value_never_becomes_a_value() -> None:
    with pytest.raises(InvalidRequest, match="OTHER") as caught:
        restored({"KEY": "new", "OTHER": HIDDEN}, {"KEY": "old"})
    assert [problem.path for problem in caught.value.fields] == ["env"]
