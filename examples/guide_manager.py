"""How is a manager steered from Python? Register, start, check, route, and read the figures.

python examples/guide_manager.py             # beside an agent file my_agent.py, or in examples/
"""

import logging
import sys
from functools import partial

import trio

from agentmgr import (
    AgentManager,
    ConditionOperator,
    RoutingCondition,
    RoutingRule,
    RoutingStrategy,
    ServiceConfig,
)

logging.getLogger("agentmgr").setLevel(logging.DEBUG)


async def main(agent: str = "my_agent.py") -> None:
    # The manager of one database
    manager = AgentManager("my_manager.db")

    try:
        # Starts it, and what ran before
        await manager.start()

        # Registers a service
        config = ServiceConfig(
            agent_factory_path=agent,
            max_sessions=10,
            auto_restart=True,  # restart it when it fails
            max_restart_count=3,  # so often at most
            restart_delay=5,  # seconds
        )
        service = await manager.register_service(
            name="my-service",
            agent_factory_path=agent,
            description="My test service",
            tags={"demo"},
            config=config,
            auto_start=True,
        )

        # Asks it how it is
        health = await manager.check_service_health(service.service_id)
        print(f"Service health: {health.status}")

        # A routing rule
        rule = RoutingRule(
            name="vip-routing",
            priority=1,
            conditions=[
                RoutingCondition(
                    field="user_agent",
                    operator=ConditionOperator.CONTAINS,
                    value="VIP",
                    case_sensitive=False,
                )
            ],
            target_strategy=RoutingStrategy.LEAST_CONNECTIONS,
            target_tags=["premium"],
            description="Route VIP clients to premium services",
        )
        manager.add_routing_rule(rule)

        # Figures
        stats = manager.get_system_stats()
        print(f"Running services: {stats['services']['running']}")
        conn_stats = manager.get_connection_stats()
        print(f"Active connections: {conn_stats['total_connections']}")
        health_summary = manager.get_health_summary()
        print(f"Healthy services: {health_summary['healthy']}")

        # What is not forgotten is there in the next run, and runs
        await manager.unregister_service(service.service_id)
        await manager.delete_routing_rule(rule.name)

    finally:
        await manager.stop()


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
