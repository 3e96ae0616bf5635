"""How do I keep the background tasks of my own trio program running? With a supervisor and no manager.

python examples/embed_supervisor.py
"""

import trio

from agentmgr import Supervisor, in_process

send, receive = trio.open_memory_channel(0)


async def heartbeat():
    """Fails after three beats; it is started again, and nobody else notices."""
    for _ in range(3):
        await send.send("beat")
        await trio.sleep(0.1)
    raise OSError("the line is dead")


async def main():
    async with Supervisor() as supervisor:
        await supervisor.start(in_process(heartbeat, restart_delay=0.2))
        for _ in range(5):
            print(await receive.receive(), flush=True)
        (instance,) = supervisor.instances()
        print(f"{instance.status}, restarted {instance.restart_count} time(s)")
    # Here everything that was started has ended.


if __name__ == "__main__":
    trio.run(main)
