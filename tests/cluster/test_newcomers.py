"""Who makes room where too many connections are not known yet."""

from __future__ import annotations

from contextlib import ExitStack

import trio

from agentmgr.cluster.newcomers import Newcomers


async def test_the_address_with_the_most_connections_loses_its_oldest_one() -> None:
    newcomers = Newcomers(5)
    with ExitStack() as here:
        node = here.enter_context(newcomers.admitted("10.0.0.1"))
        many = [here.enter_context(newcomers.admitted("10.0.0.2")) for _ in range(8)]
        assert [one.ousted for one in many] == [True] * 4 + [False] * 4
        # However many addresses of its own a machine with IPv6 connects from.
        six = [here.enter_context(newcomers.admitted(f"2001:db8::{last}")) for last in range(1, 8)]
        assert sum(one.ousted for one in six) == 4
        assert sum(one.ousted for one in many) == 7
        assert not node.ousted
        assert many[0].scope.cancel_called
        assert not many[-1].scope.cancel_called

    with newcomers.admitted("10.0.0.3") as ousted:
        with ExitStack() as others:
            for _ in range(5):
                others.enter_context(newcomers.admitted("10.0.0.3"))
            await trio.sleep_forever()
    assert ousted.ousted
