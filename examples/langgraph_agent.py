"""A LangGraph agent, as it is: no code of ours in it. It stops to ask before it books.

pip install langgraph
agentmgr serve examples/langgraph_agent.py --port 8081
agentmgr chat ws://localhost:8081

Put a real chat model, as of langchain-openai, in place of `model`.
"""

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt


def replies():
    while True:
        yield AIMessage("Of course, I have booked it for you.")


model = GenericFakeChatModel(messages=replies())


async def book(state: MessagesState):
    if not interrupt({"book": state["messages"][-1].content}):
        return {"messages": [AIMessage("All right, nothing is booked.")]}
    return {"messages": [await model.ainvoke(state["messages"])]}


def create_agent():
    graph = StateGraph(MessagesState)
    graph.add_node(book)
    graph.add_edge(START, "book")
    return graph.compile(checkpointer=InMemorySaver())
