"""The strict converter.

1. What goes out comes back equal, for every value that can be made.
2. No value is turned into another kind of value; unknown fields are refused by name.
3. Each problem names the path of its field; all problems of a body are told at once.
4. No input, however odd, gives anything but a value or `InvalidRequest`.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.codec import from_answer, from_json, from_plain, parse_json, to_json, to_plain
from agentmgr.errors import InvalidRequest
from agentmgr.models import (
    ConditionOperator,
    Connection,
    ConnectionEnd,
    Event,
    HealthCheck,
    HealthStatus,
    Instance,
    InstanceRecord,
    RestartMode,
    RoutingCondition,
    RoutingRule,
    RoutingStrategy,
    Runtime,
    Service,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
)

texts = st.text(st.characters(exclude_categories=["Cs"]))
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))  # as a process may get
variables = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0="), min_size=1)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
lines = texts.filter(lambda text: text.isprintable() and len(text) <= 1000)
tags = st.frozensets(st.from_regex(r"[^\s,\x00-\x1f\x7f]{1,64}", fullmatch=True))
moments = st.datetimes(timezones=st.just(UTC))
counts = st.integers(0, 2**63)
versions = st.integers(1, 2**31)
ports = st.integers(1, 65535)
seconds = st.floats(0.1, 3600)
maybe = st.none() | texts

configs = st.builds(
    ServiceConfig,
    agent_factory_path=words.filter(bool),
    command=st.just(()),
    python=st.none() | words,
    cwd=st.none() | words,
    env=st.dictionaries(variables, words),
    runtime=st.sampled_from(Runtime),
    restart=st.sampled_from(RestartMode),
    auto_restart=st.booleans(),
    restart_delay=seconds,
    health_check_interval=st.none() | seconds,
) | st.builds(
    ServiceConfig,
    command=st.tuples(variables).flatmap(lambda first: st.lists(words).map(lambda rest: (*first, *rest))),
    instances=st.integers(1, 1000) | st.sampled_from(["0..1", "2..8", "1000..1000"]),
    sessions_per_instance=st.integers(1, 9),
)
specs = st.builds(
    ServiceSpec,
    name=names,
    config=configs,
    description=lines,
    tags=tags,
    host=lines,
    port=st.none(),
    version=versions,
    created_at=moments,
    updated_at=moments,
)
conditions = st.builds(
    RoutingCondition,
    field=texts,
    operator=st.sampled_from(ConditionOperator),
    value=texts | st.lists(texts).map(tuple),
    case_sensitive=st.booleans(),
)
rules = st.builds(
    RoutingRule,
    name=names,
    conditions=st.lists(conditions, max_size=3).map(tuple),
    priority=st.integers(-1_000_000, 1_000_000),
    target_services=st.lists(texts).map(tuple),
    target_tags=tags,
    target_strategy=st.sampled_from(RoutingStrategy),
    fallback_strategy=st.none() | st.sampled_from(RoutingStrategy),
    hash_key=maybe,
    description=lines,
    created_at=moments,
)
records = st.builds(
    InstanceRecord, texts, texts, counts, counts, counts, texts, texts, texts, ports, counts, moments
)
checks = st.builds(
    HealthCheck,
    texts,
    texts,
    st.sampled_from(HealthStatus),
    moments,
    st.booleans(),
    st.none() | st.floats(0, 1e6),
    maybe,
)
details = st.dictionaries(
    texts,
    texts | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none(),
)
events = st.builds(Event, texts, moments, maybe, maybe, details, counts)
session_ends = st.builds(
    ConnectionEnd,
    texts,
    texts,
    texts,
    moments,
    moments,
    texts,
    st.none() | counts,
    texts,
    counts,
    counts,
    counts,
    counts,
)
instances = st.builds(
    Instance,
    texts,
    texts,
    counts,
    st.sampled_from(ServiceStatus),
    pid=st.none() | counts,
    next_restart_at=st.none() | moments,
    error_message=maybe,
)
connections = st.builds(
    Connection,
    *(texts, texts, ports, texts, texts, texts, maybe, texts),
    *(moments, seconds, counts, counts, counts, counts),
)
values = specs | rules | records | checks | events | session_ends | instances | connections


@given(values)
def test_what_goes_out_comes_back(value):
    assert from_json(to_json(value), type(value)) == value


@given(values)
def test_it_comes_back_in_the_same_types(value):
    back = from_json(to_json(value), type(value))
    for attribute in fields(type(value)):
        assert type(getattr(back, attribute.name)) is type(getattr(value, attribute.name))


@given(specs)
def test_what_goes_out_is_plain_json(spec):
    assert json.loads(to_json(spec)) == to_plain(spec)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "config", "x"]), inner)
    ),
    max_leaves=8,
)


def outcome(parse: Callable[[], Any]) -> Any:
    """The value, or the refusal; anything else is raised."""
    try:
        return parse()
    except InvalidRequest as error:
        return error


@given(anything, st.sampled_from([ServiceSpec, RoutingRule, Event, InstanceRecord, Service]))
def test_odd_data_gives_a_value_or_a_refusal(data, kind):
    value = outcome(lambda: from_plain(data, kind))
    if isinstance(value, InvalidRequest):
        assert value.fields
        assert all(problem.message for problem in value.fields)
    else:
        assert isinstance(value, kind)


@given(specs, st.sampled_from([f.name for f in fields(ServiceSpec)]), anything)
def test_one_odd_field_gives_a_value_or_is_named(spec, name, value):
    changed = outcome(lambda: from_plain({**to_plain(spec), name: value}, ServiceSpec))
    if isinstance(changed, InvalidRequest):
        assert all(p.path == "" or p.path.startswith((name, "config")) for p in changed.fields)
    else:
        assert to_plain(changed)[name] == value or name in ("config", "tags", "created_at", "updated_at")


@given(st.binary() | st.text())
def test_odd_text_gives_data_or_a_refusal(text):
    data = outcome(lambda: parse_json(text))
    assert not isinstance(data, InvalidRequest) or "not valid JSON" in str(data)


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[Infinity]", "[-Infinity]", b"\xff", "[" * 100_000, "1" * 5000, "{'a': 1}"]
)
def test_what_is_not_json_is_refused(text):
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse_json(text)


SPEC = {"name": "weather", "config": {"agent_factory_path": "agent.py"}}

REFUSED = [
    ({"name": 5}, "name must be a string, not a whole number"),
    ({"name": None}, "name must be a string, not null"),
    ({"name": "a b"}, "name must be 1 to 63 of"),
    ({"name": "a\n"}, "name must be 1 to 63 of"),
    ({"name": "-a"}, "name must be 1 to 63 of"),
    ({"description": "\ud800"}, "description must be text in valid Unicode"),
    ({"config": {**SPEC["config"], "restart_delay": float("inf")}}, "config.restart_delay must be from"),
    ({"config": {**SPEC["config"], "restart_delay": float("nan")}}, "config.restart_delay must be from"),
    ({"description": "a\x1b[2J"}, "description must be at most 1000 printable"),
    ({"tags": "weather"}, "tags must be a list, not a string"),
    ({"tags": {"a": 1}}, "tags must be a list, not an object"),
    ({"tags": ["a", 2]}, "tags[1] must be a string, not a whole number"),
    ({"tags": ["a b"]}, "tags must have no spaces"),
    ({"port": "80"}, "port must be a whole number, not a string"),
    ({"port": 80.0}, "port must be a whole number, not a number"),
    ({"port": True}, "port must be a whole number, not true or false"),
    ({"port": 0}, "port must be from 1 to 65535, not 0"),
    ({"created_at": "2026-11-22"}, "created_at must be a time such as"),
    ({"created_at": "2026-11-22T10:00:00"}, "created_at must be a time such as"),
    ({"created_at": 1795341600}, "created_at must be a time such as"),
    ({"desired_status": "RUNNING"}, "desired_status must be one of running, stopped"),
    (
        {"config": {"agent_factory_path": "a", "auto_restart": "no"}},
        "config.auto_restart must be true or false",
    ),
    ({"config": {"agent_factory_path": "a", "auto_restart": 1}}, "config.auto_restart must be true or false"),
    (
        {"config": {"agent_factory_path": "a", "restart_delay": "5"}},
        "config.restart_delay must be a number, not a s",
    ),
    (
        {"config": {"agent_factory_path": "a", "restart_delay": False}},
        "config.restart_delay must be a number, not t",
    ),
    (
        {"config": {"agent_factory_path": "a", "instances": 0}},
        "config.instances must be a number from 1 to 1000, or a range such as 2..8 or 0..4, not 0; "
        "`agentmgr stop` ends all",
    ),
    (
        {"config": {"agent_factory_path": "a", "env": {"A": 1}}},
        "config.env['A'] must be a string, not a whole",
    ),
    ({"config": {"agent_factory_path": "a", "env": []}}, "config.env must be an object, not a list"),
    ({"config": {"command": "run me"}}, "config.command must be a list, not a string"),
    ({"config": {}}, "give either an agent file or a command"),
    ({"config": {"agent_factory_path": "a", "command": ["b"]}}, "give either an agent file or a command"),
    ({"config": []}, "config must be an object, not a list"),
    (
        {"config": {"agent_factory_path": "a", "max_sesions": 1}},
        "config.max_sesions unknown field; max_sessions is one",
    ),
    ({"colour": "red"}, "colour unknown field"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_wrong_value_is_refused_with_its_path(change, words):
    with pytest.raises(InvalidRequest) as caught:
        from_plain({**SPEC, **change}, ServiceSpec)
    assert str(caught.value).startswith(words) or words.startswith("give")
    assert words in str(caught.value)
    (problem,) = caught.value.fields
    assert f"{problem.path} {problem.message}".strip() == str(caught.value)


def test_all_problems_are_told_at_once():
    body = {
        "name": 1,
        "config": {"agent_factory_path": "a", "weight": "x", "wat": 1},
        "tags": [1, "ok", 2],
    }
    with pytest.raises(InvalidRequest) as caught:
        from_plain(body, ServiceSpec)
    paths = {problem.path for problem in caught.value.fields}
    assert paths == {"name", "config.weight", "config.wat", "tags[0]", "tags[2]"}


def test_what_is_required_is_named():
    with pytest.raises(InvalidRequest) as caught:
        from_plain({"conditions": [{"field": "path"}, {"field": "path", "operator": "is"}]}, RoutingRule)
    messages = {problem.path: problem.message for problem in caught.value.fields}
    assert messages["name"] == "is required"
    assert messages["conditions[0].operator"] == "is required"
    assert messages["conditions[1].operator"].startswith("must be one of equals, not_equals")


def test_a_choice_of_kinds_names_them_all():
    with pytest.raises(InvalidRequest, match=r"^value must be a string or a list, not a whole number$"):
        from_plain({"field": "path", "operator": "equals", "value": 5}, RoutingCondition)
    with pytest.raises(InvalidRequest, match=r"^value\[1\] must be a string, not a whole number$"):
        from_plain({"field": "path", "operator": "in_list", "value": ["a", 5]}, RoutingCondition)


def test_a_whole_number_will_do_where_a_number_is_asked_for():
    config = from_plain({"agent_factory_path": "a", "restart_delay": 7}, ServiceConfig)
    assert type(config.restart_delay) is float


def test_times_are_utc_whatever_zone_they_came_in():
    moment = datetime(2026, 11, 22, 18, tzinfo=timezone(timedelta(hours=8)))
    assert to_plain(Event("x", moment))["at"] == "2026-11-22T10:00:00Z"
    back = from_plain({"kind": "x", "at": "2026-11-22T18:00:00+08:00"}, Event)
    assert back.at == moment
    assert back.at.tzinfo is UTC


def test_sets_have_one_form():
    spec = from_plain({**SPEC, "tags": ["b", "a", "b"]}, ServiceSpec)
    assert to_plain(spec)["tags"] == ["a", "b"]


def test_an_answer_of_a_newer_manager_may_say_more() -> None:
    newer = to_plain(ServiceConfig(instances=2)) | {"of_tomorrow": 1}
    assert from_answer(newer, ServiceConfig) == ServiceConfig(instances=2)
    with pytest.raises(InvalidRequest, match="of_tomorrow unknown field"):
        from_plain(newer, ServiceConfig)


def test_a_value_that_equals_the_default_is_the_default_and_takes_no_memory_of_its_own() -> None:
    read = from_json('{"agent_factory_path": "a.py", "stop_timeout": 10.0, "log_files": 7}', ServiceConfig)
    default = fields(ServiceConfig).stop_timeout.default
    assert (read.stop_timeout is default, read.log_files) == (True, 7)
