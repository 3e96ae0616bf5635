"""Registrations and rules: in memory and in the store, never apart."""

from collections.abc import Callable

import pytest

from agentmgr.errors import (
    AgentFileNotFound,
    InvalidRequest,
    NameTaken,
    PortNotAvailable,
    RuleNotFound,
    ServiceNotFound,
    StorageError,
    VersionMismatch,
    WrongState,
)
from agentmgr.manager.registry import Registry
from agentmgr.models import (
    ConditionOperator,
    DesiredStatus,
    RoutingCondition,
    RoutingRule,
    ServiceConfig,
    ServiceSpec,
)
from agentmgr.testing.memory_store import MemoryStore


def spec(name: str, *, port: int | None = None) -> ServiceSpec:
    return ServiceSpec(name=name, config=ServiceConfig(command=("serve", "{port}")), port=port)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def registry(store: MemoryStore) -> Registry:
    return Registry(store, (), ())


async def test_a_service_is_found_by_name_and_by_id(registry: Registry) -> None:
    added = await registry.add_service(spec("echo"))
    assert registry.service("echo") is registry.service(added.service_id) is added
    with pytest.raises(ServiceNotFound, match="'nobody'"):
        registry.service("nobody")


async def test_names_and_fixed_ports_are_given_once(registry: Registry, store: MemoryStore) -> None:
    await registry.add_service(spec("echo", port=8081))
    with pytest.raises(NameTaken):
        await registry.add_service(spec("echo"))
    with pytest.raises(PortNotAvailable, match="8081"):
        await registry.add_service(spec("other", port=8081))
    assert [s.name for s in (await store.load()).services] == ["echo"]


async def test_fields_change_flat_and_the_rest_stays(registry: Registry, store: MemoryStore) -> None:
    before = await registry.add_service(spec("echo"))
    after = await registry.change_service("echo", {"tags": ["a", "b"], "max_sessions": 5})
    assert after.tags == {"a", "b"}
    assert after.config.max_sessions == 5
    assert after.config.command == before.config.command
    assert after.version == before.version + 1
    assert (await store.load()).services == (after,)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"service_id": "mine"}, InvalidRequest),
        ({"max_sessions": "5"}, InvalidRequest),
        ({"name": "-"}, InvalidRequest),
        ({"name": "taken"}, NameTaken),
        ({"port": 9000}, PortNotAvailable),
        ({"agent_factory_path": "/nowhere.py", "command": []}, AgentFileNotFound),
        ({"agent_factory_path": __file__}, InvalidRequest),  # besides the command it has
    ],
)
async def test_a_change_that_cannot_be_is_refused_and_changes_nothing(
    registry: Registry, store: MemoryStore, changes: dict[str, object], error: type[Exception]
) -> None:
    before = await registry.add_service(spec("echo"))
    await registry.add_service(spec("taken", port=9000))
    with pytest.raises(error):
        await registry.change_service("echo", changes)
    assert registry.service("echo") == before
    assert before in (await store.load()).services


async def test_all_that_is_wrong_with_a_change_is_named_as_the_caller_named_it(registry: Registry) -> None:
    await registry.add_service(spec("echo"))
    await registry.add_rule(RoutingRule(name="vip"))
    condition = {"field": "path", "operator": "like"}
    for change, changes, paths in (
        (
            registry.change_service,
            {"max_sessions": "5", "port": "x", "nonsense": 1},
            "max_sessions port nonsense",
        ),
        (registry.change_rule, {"rule_id": "x", "conditions": [condition]}, "rule_id conditions[0].operator"),
        (registry.change_rule, {"priority": 10**9}, "priority"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            await change("echo" if change == registry.change_service else "vip", changes)
        assert {problem.path for problem in refusal.value.fields} == set(paths.split())


async def test_a_service_that_is_being_unregistered_takes_no_command(registry: Registry) -> None:
    await registry.add_service(spec("echo"))
    with pytest.raises(StorageError):
        async with registry.leaving("echo") as leaving:
            assert leaving.desired_status is DesiredStatus.STOPPED
            for command in (
                registry.want("echo", DesiredStatus.RUNNING),
                registry.leaving("echo").__aenter__(),
            ):
                with pytest.raises(WrongState, match="unregistered"):
                    await command
            raise StorageError("disk full")
    await registry.want("echo", DesiredStatus.RUNNING)  # it has stayed
    async with registry.leaving("echo"):
        pass
    assert registry.services() == ()


async def test_services_that_would_wait_for_each_other_are_refused(registry: Registry) -> None:
    await registry.add_service(spec("a"))
    await registry.change_service("a", {"after": ["b"]})  # which may be registered later
    with pytest.raises(InvalidRequest, match="wait for each other"):
        await registry.add_service(
            ServiceSpec(name="b", config=ServiceConfig(command=("serve",), after=("a",)))
        )
    await registry.add_service(spec("b"))
    with pytest.raises(InvalidRequest, match="wait for each other"):
        await registry.change_service("b", {"after": ["a"]})
    assert registry.service("b").config.after == ()


async def test_a_rule_that_could_never_hold_is_refused(registry: Registry, store: MemoryStore) -> None:
    for field, operator, value in (("nonsense", "equals", "x"), ("path", "regex_match", "((")):
        condition = RoutingCondition(field=field, operator=ConditionOperator(operator), value=value)
        with pytest.raises(InvalidRequest):
            await registry.add_rule(RoutingRule(name="odd", conditions=(condition,)))
    assert (await store.load()).rules == ()


async def test_a_name_is_never_taken_for_an_id(registry: Registry) -> None:
    first = await registry.add_service(spec("echo"))
    with pytest.raises(InvalidRequest, match="must not look like an id"):
        spec(first.service_id)


async def test_a_change_can_insist_on_the_version_that_was_read(registry: Registry) -> None:
    read = await registry.add_service(spec("echo"))
    await registry.change_service("echo", {"description": "first"}, expected_version=read.version)
    with pytest.raises(VersionMismatch):
        await registry.change_service("echo", {"description": "second"}, expected_version=read.version)
    assert registry.service("echo").description == "first"


async def test_a_wish_that_is_held_already_writes_nothing(registry: Registry) -> None:
    await registry.add_service(spec("echo"))
    wanted = await registry.want("echo", DesiredStatus.RUNNING)
    assert wanted.desired_status is DesiredStatus.RUNNING
    assert await registry.want("echo", DesiredStatus.RUNNING) is wanted


async def test_what_the_store_refuses_is_not_in_memory_either(registry: Registry) -> None:
    class FullDisk(MemoryStore):
        async def add_service(self, spec: ServiceSpec) -> None:
            raise StorageError("disk full")

    registry = Registry(FullDisk(), (), ())
    with pytest.raises(StorageError):
        await registry.add_service(spec("echo"))
    assert registry.services() == ()


async def test_rules_come_by_priority_then_age(registry: Registry) -> None:
    for name, priority in [("late", 9), ("first", 1), ("second", 1)]:
        await registry.add_rule(RoutingRule(name=name, priority=priority))
    assert [rule.name for rule in registry.rules()] == ["first", "second", "late"]


async def test_rules_change_and_go(registry: Registry, store: MemoryStore) -> None:
    rule = await registry.add_rule(RoutingRule(name="vip"))
    await registry.add_rule(RoutingRule(name="other"))
    changed = await registry.change_rule("vip", {"priority": 3, "enabled": False}, expected_version=1)
    assert (changed.rule_id, changed.priority, changed.enabled, changed.version) == (
        rule.rule_id,
        3,
        False,
        2,
    )
    refusals: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: registry.change_rule("vip", {"rule_id": "x"}), InvalidRequest),
        (lambda: registry.change_rule("vip", {"name": "other"}), NameTaken),
        (lambda: registry.change_rule("vip", {"priority": 4}, expected_version=1), VersionMismatch),
        (lambda: registry.add_rule(RoutingRule(name="vip")), NameTaken),
        (lambda: registry.remove_rule("nobody"), RuleNotFound),
    ]
    for call, error in refusals:
        with pytest.raises(error):
            await call()  # type: ignore[misc]
    await registry.remove_rule("vip")
    assert [r.name for r in (await store.load()).rules] == ["other"]
