"""Talks to an agent through OpenAI's Responses API: approves what it asks for, and comes back to an answer.

pip install openai
agentmgr run examples/streaming_agent.py      # in another terminal
python examples/openai_responses_client.py    # or with another address: http://HOST:PORT/v1
"""

import sys

from openai import OpenAI

address = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:9090/v1"
client = OpenAI(base_url=address, api_key="none")  # a token, where the gateway asks for one

# Each response goes on with the one before.
asking = client.responses.create(model="streaming_agent", input="delete notes.txt")
for item in asking.output:
    if item.type == "mcp_approval_request":
        print(f"may it call {item.name} with {item.arguments}? yes")
        done = client.responses.create(
            model="streaming_agent",
            previous_response_id=asking.id,
            input=[{"type": "mcp_approval_response", "approval_request_id": item.id, "approve": True}],
        )
        print(done.output_text)

# In the background an answer goes on without us, and is read again from where we were.
response_id, number, text = "", 0, ""
with client.responses.create(
    model="streaming_agent", input="which files?", background=True, stream=True
) as events:
    for event in events:
        number = event.sequence_number
        if event.type == "response.created":
            response_id = event.response.id
        elif event.type == "response.output_text.delta":
            text = event.delta
            break
print("cut after:", text)
for event in client.responses.retrieve(response_id, stream=True, starting_after=number):
    if event.type == "response.output_text.delta":
        text += event.delta
print("all of it:", text)
