"""Each order is done once, and answered until the answer has arrived."""

import trio

from agentmgr.node.orders import Orders
from agentmgr.node.protocol import Check, Done, Failed, ForgetService, Kill

ORDER = ForgetService("svc")


class Recorded:
    def __init__(self):
        self.answers, self.done, self.go_on = [], 0, trio.Event()
        self.orders = Orders(lambda number, answer: self.answers.append((number, answer)))
        self.orders.handle(ForgetService, self.forget)
        self.orders.handle(Kill, self.kill)
        self.orders.handle(Check, self.check)

    async def forget(self, order):
        self.done += 1
        await self.go_on.wait()
        return Done()

    def kill(self, order):
        raise OSError("no such process")

    async def check(self, order):
        raise ValueError("a fault of ours")


async def test_one_that_is_asked_again_is_done_once_and_answered_until_settled(nursery, autojump_clock):
    it = Recorded()
    for _ in range(3):
        it.orders.begin("1", ORDER, nursery)
        await trio.sleep(1)
    it.go_on.set()
    await trio.sleep(1)
    it.orders.begin("1", ORDER, nursery)
    assert (it.done, it.answers) == (1, [("1", Done())] * 2)
    it.orders.settle("1")
    it.orders.begin("1", ORDER, nursery)
    await trio.sleep(1)
    assert it.done == 2


async def test_what_the_manager_waits_for_no_more_is_cancelled(nursery, autojump_clock):
    it = Recorded()
    it.orders.begin("old.1", ORDER, nursery)
    it.orders.begin("new.1", ORDER, nursery)
    await trio.sleep(1)
    it.orders.keep_only(frozenset({"new.1"}))
    await trio.sleep(1)
    it.go_on.set()
    await trio.sleep(1)
    assert it.answers == [("new.1", Done())]


async def test_a_failure_is_an_answer_and_reaches_no_other_order(nursery, caplog, autojump_clock):
    it = Recorded()
    it.orders.begin("1", Kill("ins", "token"), nursery)
    it.orders.begin("2", Check("ins", "token", 1.0), nursery)
    it.orders.begin("3", ORDER, nursery)
    it.go_on.set()
    await trio.sleep(1)
    answers = dict(it.answers)
    assert answers["1"] == Failed("no such process")
    assert "a fault of ours" in answers["2"].reason
    assert "Check failed" in caplog.text
    assert answers["3"] == Done()
