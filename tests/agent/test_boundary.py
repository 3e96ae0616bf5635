"""An author's failure becomes a value; cancellation stays cancellation, also when both come at once."""

import pytest
import trio

from agentmgr.agent.boundary import Failure, contain


@pytest.mark.parametrize(
    "error", [ValueError(), SystemExit(1), GeneratorExit(), ExceptionGroup("", [KeyError()])]
)
async def test_what_is_raised_becomes_a_value(error):
    async def work():
        raise error

    outcome = await contain(work)
    assert isinstance(outcome, Failure)
    assert outcome.error is error


async def test_a_cleanup_that_fails_while_being_cancelled_is_logged_and_the_cancel_goes_on(caplog):
    async def fails_in_cleanup():
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("in clean-up")

    async def work():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_in_cleanup)
            await trio.sleep_forever()

    with trio.move_on_after(0.01) as scope:
        pytest.fail(f"not cancelled: {await contain(work)}")
    assert scope.cancelled_caught
    assert "in clean-up" in caplog.text


async def test_a_keyboard_interrupt_is_nobodys_value():
    async def work():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await contain(work)
