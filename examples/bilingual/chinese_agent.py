"""Support in Chinese; see `support.py`."""


def create_agent():
    async def answer(message):
        return f"您好！您说的是：{message}"

    return answer
