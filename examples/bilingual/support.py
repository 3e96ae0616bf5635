"""How do clients reach the right one of several services? By rules: here by query, header or path.

python examples/bilingual/support.py                     # in one terminal
agentmgr chat "ws://localhost:9090/?lang=zh"             # in another
agentmgr chat ws://localhost:9090/zh
agentmgr chat ws://localhost:9090                        # English, as no rule for Chinese matches
"""

import signal
import sys
from pathlib import Path

import trio

from agentmgr import AgentManager, ConditionOperator, RoutingCondition, RoutingRule

HERE = Path(__file__).parent

# The conditions of one rule must all hold; for "one of these", write several rules. The lowest priority
# number comes first.
CHINESE = {
    "by-query": RoutingCondition("query.lang", ConditionOperator.EQUALS, "zh"),
    "by-header": RoutingCondition("header.accept-language", ConditionOperator.STARTS_WITH, "zh"),
    "by-path": RoutingCondition("path", ConditionOperator.STARTS_WITH, "/zh"),
}


async def register(manager):
    """All that no earlier run has left."""
    known = {service.name for service in manager.list_services()}
    for language in ("chinese", "english"):
        if f"{language}-support" not in known:
            await manager.register_service(
                f"{language}-support", str(HERE / f"{language}_agent.py"), tags={"support", language}
            )
        await manager.start_service(f"{language}-support")
    rules = [
        RoutingRule(f"chinese-{name}", [condition], priority=1, target_tags={"chinese"})
        for name, condition in CHINESE.items()
    ]
    rules.append(RoutingRule("everybody-else", priority=10, target_tags={"english"}))
    present = {rule.name for rule in manager.list_routing_rules()}
    for rule in rules:
        if rule.name not in present:
            await manager.create_routing_rule(rule)


async def main(port):
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with AgentManager("bilingual.db") as manager, trio.open_nursery() as nursery:
            await register(manager)
            port = await nursery.start(manager.serve_proxy, "localhost", port)
            print(f"support answers at ws://localhost:{port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if sys.argv[1:] else 9090)
