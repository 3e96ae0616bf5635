"""The examples' settings of chat programs: what such a program then sends, as was seen of the real ones."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
OPEN_WEBUI = dict(re.findall(r"^(\w+)=(.*)$", (EXAMPLES / "open_webui.env").read_text(), re.MULTILINE))
LIBRECHAT = (EXAMPLES / "librechat.yaml").read_text()
TITLE = "### Task:\nGenerate a concise title summarizing the chat history.\n### Guidelines:\n…"


@pytest.fixture
def agent():
    """The example; its `heard` has the session's name and the message of each turn."""
    example = runpy.run_path(str(EXAMPLES / "streaming_agent.py"))["agent"]

    async def recorded(message, session):
        recorded.heard.append((session.name, str(message)))
        async for item in example(message, session):
            yield item

    recorded.heard = []
    return recorded


def ask(stage, headers, *texts, key="none", **more):
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    headers = {"Authorization": f"Bearer {key}", **headers}
    return stage.ask("POST", "/v1/chat/completions", {"model": "echo", "messages": messages, **more}, headers)


async def said(stage, headers, *texts, **more):
    status, _, answer = await ask(stage, headers, *texts, **more)
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("from_settings", [False, True])
async def test_a_chat_of_open_webui_is_a_session_and_its_errands_are_not(stage_of, agent, from_settings):
    assert OPEN_WEBUI["ENABLE_FORWARD_USER_INFO_HEADERS"] == "true"
    chat = {"X-OpenWebUI-Chat-Id": "c1", "X-OpenWebUI-User-Name": "Ann"}
    errand = chat
    if from_settings:
        text = (EXAMPLES / "open_webui.env").read_text()
        headers = dict(re.findall(r'"([\w-]+)": "({{\w+}})"', text))
        assert headers == {"X-Session-Id": "{{CHAT_ID}}", "X-Task": "{{TASK}}"}
        chat, errand = {"X-Session-Id": "c1", "X-Task": ""}, {"X-Session-Id": "c1", "X-Task": "tags"}
    async with stage_of(agent) as stage:
        assert OPEN_WEBUI["OPENAI_API_BASE_URL"] == "http://localhost:9090/v1"
        assert "files" in await said(stage, errand, TITLE, key=OPEN_WEBUI["OPENAI_API_KEY"])
        asked = await said(stage, chat, "delete notes.txt")
        await said(stage, errand, TITLE)
        assert "gone" in await said(stage, chat, "delete notes.txt", asked, "yes")
        await stage.at_base()
    assert agent.heard == [(None, TITLE), ("openai:c1", "delete notes.txt"), (None, TITLE)]


async def test_a_conversation_of_librechat_is_a_session(stage_of, agent):
    (header,) = re.findall(r'([\w-]+): "{{LIBRECHAT_BODY_CONVERSATIONID}}"', LIBRECHAT)
    assert "baseURL: http://localhost:9090/v1" in LIBRECHAT
    assert "addParams: {show_tools: true}" in LIBRECHAT
    async with stage_of(agent) as stage:
        # Its models are those that the gateway lists, besides the one of the file.
        listed = [model["id"] for model in (await stage.ask("GET", "/v1/models"))[2]["data"]]
        assert listed == ["auto", "echo"]
        asked = await said(stage, {header: "c1"}, "delete notes.txt", model="auto", user="u1", stop=["||>"])
        whole = await ask(
            stage, {header: "c1"}, "delete notes.txt", asked, "yes", stream=True, show_tools=True
        )
        assert b"gone" in whole[2]
        assert b"[delete_file: deleted 8 bytes]" in whole[2]
    assert agent.heard == [("openai:c1", "delete notes.txt")]
