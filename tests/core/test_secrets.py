"""Which values of an environment are shown."""

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.core.secrets import HIDDEN, restored, shown

NAMES = st.sampled_from(["OPENAI_API_KEY", "GITHUB_TOKEN", "db_password", "LANG", "PORT", "HOME"])


def test_what_sounds_like_a_secret_is_hidden() -> None:
    env = {"OPENAI_API_KEY": "sk-1", "DB_PASSWORD": "x", "LANG": "zh", "EMPTY_TOKEN": ""}
    assert shown(env) == {"OPENAI_API_KEY": HIDDEN, "DB_PASSWORD": HIDDEN, "LANG": "zh", "EMPTY_TOKEN": ""}


@given(st.dictionaries(NAMES, st.text(max_size=5)))
def test_what_was_shown_and_is_given_back_means_what_it_was(env: dict[str, str]) -> None:
    assert restored(shown(env), env) == env


def test_a_new_value_is_a_new_value() -> None:
    assert restored({"KEY": "new", "OTHER": HIDDEN}, {"KEY": "old"}) == {"KEY": "new", "OTHER": HIDDEN}


def test_a_url_with_a_password_is_hidden_whatever_it_is_called():
    assert shown({"DATABASE": "postgres://u:pw@h/db", "HOME": "https://h/a:b@c"}) == {
        "DATABASE": HIDDEN,
        "HOME": "https://h/a:b@c",
    }
