"""How do I register an agent that is part of a package?

    agentmgr register greeter greeter.agents:friendly --cwd examples/module --env GREETING=Howdy --auto-start
    agentmgr chat greeter

A package that is installed needs no --cwd; one that is installed in an environment of its own, beside
agentmgr, needs --python PATH of that environment's interpreter.
"""

import os


def friendly():
    greeting = os.environ.get("GREETING", "Hello")

    async def greet(message):
        return f"{greeting}, {message}!"

    return greet
