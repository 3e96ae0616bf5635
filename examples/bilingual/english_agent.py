"""Support in English; see `support.py`."""


def create_agent():
    async def answer(message):
        return f"Hello! You said: {message}"

    return answer
