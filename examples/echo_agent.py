"""The smallest agent: says back what it hears.

agentmgr run examples/echo_agent.py        # in one terminal
agentmgr chat                              # in another; or: websocat ws://localhost:9090
"""


def create_agent():
    async def echo(message):
        return f"You said: {message}"

    return echo
