"""Talks to an agent with the `openai` package: a service is a model, and the next message answers a question.

pip install openai
agentmgr run examples/streaming_agent.py      # in another terminal
python examples/openai_client.py              # or with another address: http://HOST:PORT/v1
"""

import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

address = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:9090/v1"
client = OpenAI(base_url=address, api_key="none")  # a token, where the gateway asks for one
print("models:", ", ".join(model.id for model in client.models.list()))

messages: list[ChatCompletionMessageParam] = []
for text in ("hello", "delete notes.txt", "yes"):
    print(f"> {text}")
    messages.append({"role": "user", "content": text})
    chunks = client.chat.completions.create(
        model="streaming_agent",
        messages=messages,
        stream=True,
        extra_headers={"X-Session-Id": "my chat"},  # else each request is a session of its own
    )
    answer = ""
    for chunk in chunks:
        piece = chunk.choices[0].delta.content or ""
        print(piece, end="", flush=True)
        answer += piece
    print()
    messages.append({"role": "assistant", "content": answer})
