import pytest
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.chat_completion_client_base import ChatCompletionClientBase
from semantic_kernel.contents import ChatMessageContent, StreamingChatMessageContent

from agentmgr.agent.adapt import needs
from agentmgr.models import Runtime
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}
pytestmark = pytest.mark.filterwarnings("default")  # for the framework's own


class ScriptedService(ChatCompletionClientBase):
    """Says its replies in turn, word by word."""

    replies: list
    heard: list

    async def _inner_get_chat_message_contents(self, chat_history, settings):
        return [ChatMessageContent(role="assistant", content=self._reply(chat_history))]

    async def _inner_get_streaming_chat_message_contents(
        self, chat_history, settings, function_invoke_attempt=0
    ):
        for word in self._reply(chat_history).split():
            yield [StreamingChatMessageContent(role="assistant", content=word + " ", choice_index=0)]

    def _reply(self, history):
        self.heard.append([(str(message.role.value), message.content.strip()) for message in history])
        return self.replies.pop(0)


def scripted(*replies):
    service = ScriptedService(ai_model_id="scripted", replies=list(replies), heard=[])
    return service, ChatCompletionAgent(service=service, name="helper", instructions="You help.")


async def test_text_is_streamed_and_each_session_remembers_its_own():
    service, agent = scripted("it is one", "two", "three")
    assert needs(agent) is Runtime.ASYNCIO
    async with hosted(agent, **ASYNCIO) as url:
        async with bare_client(url) as first, bare_client(url) as second:
            assert (await first.ask("a"))["content"].strip() == "it is one"
            assert [e["content"] for e in first.events if e["event"] == "agent.partial_answer"] == [
                "it ", "is ", "one ",
            ]  # fmt: skip
            await first.ask("b")
            await second.ask("c")
    heard = [[text for role, text in messages if role != "system"] for messages in service.heard]
    assert heard == [["a"], ["a", "it is one", "b"], ["c"]]


async def test_the_conversation_goes_on_in_the_next_host(in_two_hosts):
    service, agent = scripted("one", "two")
    await in_two_hosts(lambda: agent, ["a"], ["b"])
    assert [text for role, text in service.heard[1] if role != "system"] == ["a", "one", "b"]


async def test_it_gets_the_history_and_the_instructions(ask_as_a_chat_program):
    service, agent = scripted("fine", "good")
    async with hosted(agent, **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
    first = [text for _, text in service.heard[0]]
    assert first == ["You help.", "be brief", "my name is Ann", "hello Ann", "look"]
    assert service.heard[1][:2] == [("system", "You help."), ("system", "be kind")]
    assert ("system", "be brief") not in service.heard[1]
