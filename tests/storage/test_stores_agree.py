"""Whatever is done to them, the store in a file and the one in memory give the same answers.

So a test that passes with `MemoryStore` tells what would happen with a file.
"""

import tempfile
from pathlib import Path
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmgr.errors import AgentManagerError
from agentmgr.models import Event, ServiceConfig, ServiceSpec
from agentmgr.storage import Store, open_store
from agentmgr.testing import MemoryStore

texts = st.text(max_size=20)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0="), min_size=1, max_size=20)
configs = st.builds(
    ServiceConfig, agent_factory_path=texts.filter(bool), env=st.dictionaries(words, words, max_size=2)
)
some_names = st.sampled_from(["a", "b", "c"])
keys = st.sampled_from(["svc_1", "svc_2", "svc_3"])
versions = st.integers(1, 3)
seconds = st.integers(0, 9)
limits = st.integers(0, 4)

operations = st.lists(
    st.one_of(
        st.tuples(st.just("add_service"), keys, some_names, configs),
        st.tuples(st.just("update_service"), keys, some_names, configs, versions),
        st.tuples(st.just("delete_service"), keys),
        st.tuples(st.just("add_rule"), keys, some_names),
        st.tuples(st.just("update_rule"), keys, some_names, versions),
        st.tuples(st.just("delete_rule"), keys),
        st.tuples(st.just("put_instance"), keys, some_names),
        st.tuples(st.just("delete_instance"), some_names),
        st.tuples(st.just("check"), keys, seconds),
        st.tuples(st.just("session_end"), keys, seconds),
        st.tuples(
            st.just("event"), keys | st.none(), seconds, st.sampled_from(["instance.error", "x"]), texts
        ),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)


async def perform(store: Store, make, operation: tuple[Any, ...]) -> object:
    """What came of it: the result, or the error's class and message."""
    try:
        match operation:
            case "add_service", key, name, config:
                # Whether a fact's service is there is asked when it is written. Ids meet in this test only.
                await store.flush()
                spec = ServiceSpec(name, config, service_id=key, created_at=make.noon, updated_at=make.noon)
                return await store.add_service(spec)
            case "update_service", key, name, config, version:
                spec = ServiceSpec(name, config, service_id=key, created_at=make.noon, updated_at=make.noon)
                return await store.update_service(evolve(spec, version=version))
            case "delete_service", key:
                return await store.delete_service(key)
            case "add_rule", key, name:
                return await store.add_rule(make.rule(name, rule_id=key, created_at=make.noon))
            case "update_rule", key, name, version:
                rule = make.rule(name, rule_id=key, version=version, created_at=make.noon)
                return await store.update_rule(rule)
            case "delete_rule", key:
                return await store.delete_rule(key)
            case "put_instance", key, instance_id:
                return await store.put_instance(make.instance(key, instance_id))
            case "delete_instance", instance_id:
                return await store.delete_instance(instance_id)
            case "check", key, second:
                return store.record(make.check(key, second))
            case "session_end", key, second:
                return store.record(make.session_end(key, second))
            case "event", key, second, kind, text:
                at = make.check("", second).checked_at
                return store.record(Event(kind, at, service_id=key, detail={"text": text}))
    except AgentManagerError as error:
        return type(error), error.message
    raise AssertionError(operation)


async def everything(store: Store) -> tuple[object, ...]:
    snapshot = await store.load()
    keys = ("svc_1", "svc_2", "svc_3")
    events = await store.events()
    return (
        snapshot,
        events,
        await store.events(after=events[0].event_id, limit=2) if events else (),
        [await store.health_history(key, limit=3) for key in keys],
        store.dropped,
        store.degraded,
    )


@settings(max_examples=50, deadline=None)
@given(operations=operations)
async def test_the_stores_agree(tmp_path_factory, make, operations):
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as directory:
        path = Path(directory) / "a.db"
        memory = MemoryStore()
        remaining = list(operations)
        while True:
            async with open_store(path) as store:
                while remaining and remaining[0] != ("reopen",):
                    operation = remaining.pop(0)
                    assert await perform(store, make, operation) == await perform(memory, make, operation)
                assert await everything(store) == await everything(memory)
            if not remaining:
                break
            remaining.pop(0)
