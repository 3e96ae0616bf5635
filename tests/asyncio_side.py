"""A client for asyncio, on a real asyncio loop in a thread, as a test under trio calls it."""

import inspect
from contextlib import asynccontextmanager
from functools import partial

import trio

from agentmgr.agent.aio import AsyncioRuntime


@asynccontextmanager
async def asyncio_side():
    """Gives `there`, which wraps what lives on that loop."""
    runtime = AsyncioRuntime()
    async with trio.open_nursery() as nursery:
        await nursery.start(runtime.run)
        yield partial(There, runtime)
        nursery.cancel_scope.cancel()


class There:
    """Awaits there what is awaited here: methods, contexts, iterators, and what these return."""

    def __init__(self, runtime, thing):
        self._runtime, self._thing = runtime, thing

    def __getattr__(self, name):
        found = getattr(self._thing, name)
        return There(self._runtime, found) if callable(found) or _is_ours(found) else found

    def __call__(self, *args, **options):
        made = self._thing(*args, **options)
        return self._await(made) if inspect.isawaitable(made) else There(self._runtime, made)

    async def _await(self, awaitable):
        async def there():
            return await awaitable

        made = await self._runtime.call(there)
        return There(self._runtime, made) if _is_ours(made) else made

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await self._await(self._thing.__anext__())

    async def __aenter__(self):
        return await self._await(self._thing.__aenter__())

    async def __aexit__(self, *error):
        with trio.CancelScope(shield=True):
            return await self._await(self._thing.__aexit__(*error))


def _is_ours(thing):
    return type(thing).__module__.startswith("agentmgr.client") and type(thing).__name__ != "AgentEvent"
