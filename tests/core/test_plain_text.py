"""Which lines are a yes, which a no, and which are neither."""

import pytest

from agentmgr.core.plain_text import yes_or_no


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("Yes!", True),
        (" ok ", True),
        ("Of  course!", True),
        ("yes, please.", True),
        ("好的。", True),
        ("No.", False),
        ("no, thanks", False),
        ("don\u2019t!", False),
        ("of course not", False),
        ("CANCEL", False),
        ("不要", False),
        ("", None),
        ("   ", None),
        ("maybe", None),
        ("yes no", None),
        ("yes, but only the first", None),
        ("please", None),
    ],
)
def test_only_a_clear_answer_is_one(text: str, meaning: bool | None) -> None:
    assert yes_or_no(text) is meaning
