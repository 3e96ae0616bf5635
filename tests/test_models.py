"""The values: what can be made of them is right in itself."""

from datetime import timedelta

import pytest
from attrs import evolve, exceptions
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.errors import InvalidRequest
from agentmgr.models import (
    ConnectionEnd,
    InstanceRecord,
    RestartMode,
    RoutingRule,
    ServiceConfig,
    ServiceSpec,
    new_id,
    utc_now,
)
from agentmgr.models.instance_range import InstanceRange

CONFIG = ServiceConfig(agent_factory_path="agent.py")
SPEC = ServiceSpec("weather", CONFIG)


def test_the_guides_defaults_hold():
    assert CONFIG.auto_restart
    assert CONFIG.restart_mode is RestartMode.ON_FAILURE
    assert (CONFIG.max_restart_count, CONFIG.restart_delay, CONFIG.session_timeout) == (3, 5.0, 1800.0)


def test_auto_restart_can_be_switched_off():
    config = evolve(CONFIG, auto_restart=False, restart=RestartMode.ALWAYS)
    assert config.restart_mode is RestartMode.NEVER


def test_values_do_not_change():
    with pytest.raises(exceptions.FrozenInstanceError):
        SPEC.name = "other"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", ".a", "-a", "a" * 64, "ä", "a\n", "a\x00"])
def test_a_name_that_could_harm_a_path_or_a_log_line_is_refused(name):
    for make in (lambda: ServiceSpec(name, CONFIG), lambda: RoutingRule(name)):
        with pytest.raises(InvalidRequest) as caught:
            make()
        assert caught.value.fields[0].path == "name"


@pytest.mark.parametrize("name", ["a", "weather-service", "A.b_c-9", "9", "a" * 63])
def test_an_ordinary_name_is_fine(name):
    assert ServiceSpec(name, CONFIG).name == name


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 0},
        {"max_sessions": -1},
        {"restart_delay": -0.1},
        {"restart_delay": float("nan")},
        {"health_check_timeout": 0},
        {"stop_timeout": float("inf")},
    ],
)
def test_a_number_out_of_range_is_refused_by_name(change):
    (name,) = change
    with pytest.raises(InvalidRequest, match=f"^{name} must be from") as caught:
        evolve(CONFIG, **change)
    assert caught.value.fields[0].path == name


@pytest.mark.parametrize(
    ("instances", "least", "most", "on_demand"),
    [(1, 1, 1, False), (1000, 1000, 1000, False), ("2..8", 2, 8, False), ("0..1", 0, 1, True)],
)
def test_how_many_run_is_a_number_or_a_range(instances, least, most, on_demand):
    config = evolve(CONFIG, instances=instances)
    assert config.instance_range == InstanceRange(least, most)
    assert config.on_demand == on_demand


@pytest.mark.parametrize(
    ("instances", "why"),
    [
        (0, "not 0; `agentmgr stop` ends all"),
        (1001, "not 1001"),
        (-1, "not -1"),
        ("3", "not '3'"),
        ("2..", "not '2..'"),
        ("2-8", "not '2-8'"),
        (" 2..8", "not ' 2..8'"),
        ("02..8", "not '02..8'"),
        ("0..0", "not '0..0'"),
        ("8..2", "not '8..2': its lower end comes first"),
        ("2..1001", "not '2..1001': at most 1000"),
        (2.5, "not 2.5"),
    ],
)
def test_what_is_neither_is_refused_with_what_would_do(instances, why):
    with pytest.raises(InvalidRequest) as caught:
        evolve(CONFIG, instances=instances)
    needed = "instances must be a number from 1 to 1000, or a range such as 2..8 or 0..4"
    assert caught.value.message == f"{needed}, {why}"
    assert caught.value.fields[0].path == "instances"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"instances": "1..4"}, "add sessions_per_instance or max_sessions"),
        ({"instances": "0..4"}, "add sessions_per_instance or max_sessions"),
        ({"instances": "1..4", "max_sessions": 9, "restart": RestartMode.NEVER}, "a number for a job"),
        ({"instances": "1..1", "schedule": "0 3 * * *"}, "must be 1 with a schedule"),
        ({"instances": "1..4", "max_sessions": 9}, None),
        ({"instances": "1..4", "sessions_per_instance": 9}, None),
        ({"instances": "0..1"}, None),
    ],
)
def test_a_range_of_a_command_needs_to_know_what_one_instance_is_for(change, why):
    config = ServiceConfig(command=("serve",), **change)
    if why is None:
        assert ServiceSpec("weather", config).config is config
        return
    with pytest.raises(InvalidRequest, match=why) as caught:
        ServiceSpec("weather", config)
    assert caught.value.fields[0].path == "instances"


def test_a_string_is_not_a_list_of_letters():
    with pytest.raises(InvalidRequest, match="list of strings"):
        ServiceSpec("weather", CONFIG, tags="abc")
    with pytest.raises(InvalidRequest, match="list of strings"):
        ServiceConfig(command="node server.js")


def test_either_a_file_or_a_command_is_run():
    for config in (ServiceConfig(), ServiceConfig(agent_factory_path="a.py", command=("b",))):
        with pytest.raises(InvalidRequest, match="either an agent file or a command"):
            ServiceSpec("weather", config)


def test_a_fixed_port_is_for_one_instance():
    with pytest.raises(InvalidRequest, match="a fixed port allows one instance"):
        ServiceSpec("weather", evolve(CONFIG, instances=2), port=8081)
    with pytest.raises(InvalidRequest, match="a fixed port allows one instance"):
        ServiceSpec("weather", evolve(CONFIG, instances="0..2"), port=8081)
    assert ServiceSpec("weather", evolve(CONFIG, instances="0..1"), port=8081).port == 8081


@pytest.mark.parametrize(
    "change",
    [
        {"ready": "auto"},
        {"ready": "websocket:/ws?a=b"},
        {"ready": "http:/healthz"},
        {"ready": "tcp", "health": "watchdog"},
        {"ready": "notify", "health": "http"},
        {"ready": "started", "health": "none"},
    ],
)
def test_a_command_may_show_that_it_is_ready_and_well_in_many_ways(change):
    config = ServiceConfig(command=("serve",), **change)
    assert ServiceSpec("weather", config).config.ready_method.kind in change["ready"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"ready": "htp"},
            "ready must be auto, websocket[:PATH], http[:PATH], tcp, notify, log:PATTERN or started, not",
        ),
        (
            {"health": "notify"},
            "health must be auto, websocket[:PATH], http[:PATH], tcp, command:COMMAND, watchdog or none",
        ),
        ({"ready": "watchdog"}, "not 'watchdog'"),
        ({"ready": ""}, "not ''"),
        ({"ready": "tcp:/x"}, "not 'tcp:/x'"),
        ({"health": "http:foo"}, "health must have a path that begins with '/'"),
        ({"health": "http:"}, "health must have a path that begins with '/'"),
        ({"ready": "http:/a b"}, "has no spaces"),
        ({"ready": "http:/a\r\nX: y"}, "has no spaces"),
        ({"ready": "websocket:/é"}, "ready must have a path"),
    ],
)
def test_a_way_that_there_is_not_is_refused_by_name(change, said):
    with pytest.raises(InvalidRequest) as caught:
        ServiceConfig(command=("serve",), **change)
    assert said in str(caught.value)
    assert caught.value.fields[0].path in change


@pytest.mark.parametrize(
    "change", [{"ready": "notify"}, {"ready": "websocket:/ws"}, {"health": "tcp"}, {"health": "watchdog"}]
)
def test_an_agent_file_is_asked_by_its_own_protocol(change):
    with pytest.raises(InvalidRequest, match="is for commands"):
        ServiceSpec("weather", evolve(CONFIG, **change))
    assert ServiceSpec("weather", evolve(CONFIG, ready="websocket", health="none"))


def test_a_change_makes_the_next_version():
    changed = SPEC.changed(description="new")
    assert (changed.version, changed.description) == (2, "new")
    assert changed.service_id == SPEC.service_id
    assert changed.created_at == SPEC.created_at
    assert changed.updated_at >= SPEC.updated_at


def test_a_change_is_checked_like_a_new_value():
    with pytest.raises(InvalidRequest):
        SPEC.changed(port=0)


def test_ids_tell_their_kind_and_do_not_meet():
    ids = {new_id("svc") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(one.startswith("svc_") for one in ids)


def test_a_secret_is_not_shown():
    record = InstanceRecord("i", "s", 0, 1, 2, "boot", "very-secret", "localhost", 80, 1, utc_now())
    assert "very-secret" not in repr(record)


def end(ended_by: str, code: int | None, *, services_fault: bool = False) -> ConnectionEnd:
    now = utc_now()
    return ConnectionEnd(
        "c", "s", "i", now - timedelta(seconds=1), now, ended_by, code, "", 0, 0, 0, 0,
        services_fault=services_fault,
    )  # fmt: skip


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1008, 1012, 3000, 4999])
@pytest.mark.parametrize("ended_by", ["client", "backend", "gateway"])
def test_an_end_that_was_meant_is_no_failure(ended_by, code):
    assert not end(ended_by, code).failed


@pytest.mark.parametrize("code", [None, 1006, 1011, 1013, 1014])
def test_a_session_that_its_instance_broke_off_has_failed(code):
    assert end("backend", code).failed


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1009, 1010])
def test_an_instances_verdict_on_what_its_client_sent_is_no_failure_of_the_service(code):
    assert not end("backend", code).failed


@pytest.mark.parametrize("code", [None, 1001, 1002, 1008, 1009, 1011, 1013, 4000])
def test_what_the_gateway_ended_is_the_services_failure_only_if_the_service_caused_it(code):
    assert not end("gateway", code).failed
    assert end("gateway", code, services_fault=True).failed


@given(st.none() | st.integers(1000, 4999))
def test_a_client_that_goes_is_never_the_services_failure(code):
    assert not end("client", code).failed
