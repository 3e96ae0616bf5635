"""`agentmgr.testing.hosted`, as the tests of an author use it."""

import pytest
import trio

from agentmgr.testing import bare_client, hosted


async def echo(message):
    await trio.lowlevel.checkpoint()
    return message


async def test_an_assert_that_fails_inside_comes_out_as_itself():
    with pytest.raises(AssertionError, match="mine"):
        async with hosted(echo) as url, bare_client(url) as client:
            assert (await client.ask("hi"))["content"] == "hi"
            raise AssertionError("mine")


async def test_it_can_be_cancelled():
    with trio.move_on_after(0.1) as scope:
        async with hosted(echo):
            await trio.sleep_forever()
    assert scope.cancelled_caught
