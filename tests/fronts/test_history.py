"""Whether a client's history is a session's: what may differ, and what may not."""

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.fronts import history
from agentmgr.fronts.prompt import Attachment, ChatMessage, Prompt, session_key


def user(text, *attachments):
    return ChatMessage("user", text, attachments)


def agent(text):
    return ChatMessage("assistant", text)


def ours(*said):
    return [{"role": role, "content": content} for role, content in said]


KNOWN = ours(
    ("user", "hi"), ("assistant", "hello  there"), ("user", {"text": "two"}), ("assistant", {"a": 1})
)


def test_what_was_said_is_compared_but_for_white_space():
    said = [user(" hi"), agent("hello there\n"), user("two"), agent('{"a": 1}')]
    assert history.same(KNOWN, said)
    assert not history.same(KNOWN, said[:-1])
    assert not history.same(KNOWN, [*said, user("three")])
    assert not history.same(KNOWN, [user("edited"), *said[1:]])
    assert not history.same(KNOWN, [*said[:-1], agent("regenerated")])
    assert history.same([], [])


def test_of_an_answer_that_was_stopped_a_client_has_as_much_as_it_got():
    known = [*ours(("user", "count")), {"role": "assistant", "content": "1 2 3 4", "incomplete": True}]
    assert history.same(known, [user("count"), agent("1 2 3")])
    assert history.same([*known, *KNOWN[:2]], [user("count"), agent("1"), user("hi"), agent("hello there")])
    assert not history.same(known, [user("count more"), agent("1 2 3")])


def test_of_a_long_history_the_newest_entries_are_enough():
    said = [user("long ago"), agent("yes"), user("hi"), agent("hello there"), user("two"), agent('{"a": 1}')]
    assert history.same(KNOWN, said, older_dropped=True)
    assert not history.same(KNOWN, said)


def test_a_question_and_its_answer_are_one_turn_to_the_session():
    known = ours(("user", "delete"), ("assistant", "Well. Gone."), ("user", "next"), ("assistant", "done"))
    asked = [user("delete"), agent("Well.\n\nReally? [yes/no]"), user("yes"), agent("Gone.")]
    assert history.same(known, [*asked, user("next"), agent("done")])
    twice = [*asked[:3], agent("Sure? [yes/no]"), user("yes"), agent("Gone.")]
    assert history.same(known, [*twice, user("next"), agent("done")])
    assert not history.same(known, [*twice, user("other"), agent("done")])
    assert history.asks(asked[:2])
    assert not history.asks(asked[:3])
    assert not history.asks([])


def test_answers_without_a_text_do_not_count():
    assert history.same(KNOWN[:2], [user("hi"), agent(""), agent("hello there")])
    assert history.same([*KNOWN[:2], *ours(("assistant", ""))], [user("hi"), agent("hello there")])


def test_the_last_turn_of_a_session_may_be_of_the_same_message():
    assert history.ends_with(KNOWN, user("two "))
    assert not history.ends_with(KNOWN, user("hi"))
    assert not history.ends_with(KNOWN[:3], user("two"))
    assert not history.ends_with([], user("two"))


SAID = st.lists(st.builds(ChatMessage, st.sampled_from(["user", "assistant"]), st.text()), max_size=6)


@given(SAID, SAID)
def test_digests_are_equal_for_what_was_said_alike(one, other):
    def plain(said):
        return [(each.role, each.text.split()) for each in said]

    assert (history.digest(one) == history.digest(other)) == (plain(one) == plain(other))


@given(SAID)
def test_a_history_is_that_of_the_session_that_was_seeded_with_it(said):
    turns = [each for each in said if not each.text.rstrip().endswith("[yes/no]")]
    assert history.same([each.entry for each in turns], turns)


def test_an_attachment_makes_a_difference():
    url = "data:image/png;base64,AAAA"
    assert history.digest([user("a")]) != history.digest([user("a", Attachment("image", url))])
    assert user("a", Attachment("image", url, "b.png")).entry == {
        "role": "user",
        "content": "a",
        "attachments": [{"kind": "image", "url": url, "name": "b.png"}],
    }


def test_the_first_key_that_a_client_gives_counts():
    headers = {"x-session-id": "a", "x-conversation-id": "b", "x-openwebui-chat-id": "c"}
    for expected in ("a", "b", "c"):
        assert session_key(headers, {"session_id": "d"}, "e") == expected
        del headers[next(iter(headers))]
    assert session_key({}, {"session_id": "d"}, "e") == "d"
    assert session_key({}, {}, "e") == "e"
    assert session_key({}, {"session_id": 1}, None) is None
    assert session_key({}, {}, None) is None
    assert session_key({"x-session-id": ""}, {}, "e") == "e"
    assert len(session_key({}, {}, "x" * 1000)) == 64


def test_a_chat_programs_own_errand_has_no_key():
    assert session_key({"x-openwebui-chat-id": "a"}, {"task": "title_generation"}, "b") is None
    assert session_key({"x-session-id": "a", "x-task": "tags_generation"}, {}, None) is None
    assert session_key({"x-session-id": "a", "x-task": ""}, {}, None) == "a"


def test_open_webuis_errands_are_known_by_how_they_begin():
    chat, errand = {"x-openwebui-chat-id": "a"}, Prompt(user("### Task:\nGenerate a concise title"))
    assert session_key(chat, {}, None, errand) is None
    assert session_key(chat, {}, None, Prompt(user("what is ### Task:"))) == "a"
    assert session_key({"x-session-id": "a"}, {}, None, errand) == "a"
