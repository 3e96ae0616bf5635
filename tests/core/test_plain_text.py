"""Which lines are a yes, which a no, and which are neither; and how a question is asked."""

import pytest

from agentmgr.core.plain_text import as_plain_text, yes_or_no


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


@pytest.mark.parametrize(
    ("content", "question"),
    [
        ({"tool": "rm", "args": {"path": "/"}, "message": ""}, "May I run rm(path='/')?"),
        ({"tool": "rm", "args": None, "message": ""}, "May I run rm()?"),
        ({"tool": "rm", "args": {}, "message": "Delete all?"}, "Delete all?"),
        ({"tool": "Delete all?", "args": None, "message": ""}, "Delete all?"),
    ],
)
def test_a_question_is_asked_in_its_own_words_or_by_its_tool(content: object, question: str) -> None:
    assert as_plain_text({"event": "agent.user_confirm", "content": content}) == f"{question} [yes/no]"
