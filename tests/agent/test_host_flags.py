"""What a service says of its agent's host reaches it: each field of `HostConfig`, and old flags."""

import os
from enum import StrEnum
from typing import Any, get_type_hints

import pytest
from attrs import asdict, fields

from agentmgr.agent.__main__ import _options, main
from agentmgr.agent.host import HostOptions
from agentmgr.errors import InvalidRequest
from agentmgr.models import HostConfig, OnDisconnect, Runtime, ServiceConfig, WhenBusy
from agentmgr.supervisor.slot import _host_options

OPTIONS = [field for field in fields(HostConfig) if field.name != "agent_factory_path"]


def of_host(config: ServiceConfig) -> HostOptions:
    return _options(["a.py", *_host_options(config)])


def another(field: Any) -> Any:
    """A value that is not the default."""
    hint = get_type_hints(HostConfig)[field.name]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return next(member for member in hint if member != field.default)
    return not field.default if isinstance(field.default, bool) else (field.default or 0) + 1


@pytest.mark.parametrize("field", OPTIONS, ids=lambda field: field.name)
def test_each_option_of_a_host_reaches_it(field):
    config = ServiceConfig(agent_factory_path="a.py", **{field.name: another(field)})
    assert of_host(config) == HostOptions("a.py", **{field.name: another(field)})


def test_what_a_configuration_says_of_sessions_reaches_the_host():
    config = ServiceConfig(
        agent_factory_path="a.py", runtime=Runtime.TRIO, max_sessions=3, session_timeout=4.5,
        max_message_bytes=5, turn_timeout=6, confirm_timeout=7, on_disconnect=OnDisconnect.CANCEL,
        disconnect_grace=8, when_busy=WhenBusy.REJECT,
    )  # fmt: skip
    options = of_host(config)
    assert options.max_conversations == config.max_sessions == 3
    assert options.on_disconnect is OnDisconnect.CANCEL
    for field in OPTIONS:
        if field.name != "max_conversations":
            assert getattr(options, field.name) == getattr(config, field.name)


def test_the_hosts_defaults_are_those_of_a_service():
    assert _host_options(ServiceConfig("a.py")) == []
    assert of_host(ServiceConfig("a.py")) == HostOptions("a.py")


def test_a_host_has_its_own_limit_of_conversations_and_reads_its_old_name():
    config = ServiceConfig(agent_factory_path="a.py", max_sessions=3, max_conversations=50)
    assert of_host(config).max_conversations == 50
    assert _options(["a.py", "--max-sessions", "3"]).max_conversations == 3


def test_a_manager_of_before_that_runs_on_gives_a_flag_for_each():
    words = (
        "--runtime trio --max-sessions 3 --session-timeout 4.5 --max-message-bytes 5 "
        "--turn-timeout 6.0 --confirm-timeout 7.0 --on-disconnect cancel --disconnect-grace 8.0 "
        "--when-busy reject --manager-fd 9"
    )
    wanted = HostOptions(
        "a.py", lifeline_fd=9, runtime=Runtime.TRIO, max_conversations=3, session_timeout=4.5,
        max_message_bytes=5, turn_timeout=6, confirm_timeout=7, on_disconnect=OnDisconnect.CANCEL,
        disconnect_grace=8, when_busy=WhenBusy.REJECT,
    )  # fmt: skip
    assert asdict(_options(["a.py", *words.split()])) == asdict(wanted)


@pytest.mark.parametrize("text", ['{"no_such_option": 1}', '{"turn_timeout": -1}', '{"when_busy": "x"}'])
def test_what_no_host_has_is_named(text):
    with pytest.raises(InvalidRequest, match=r"no_such_option|turn_timeout|when_busy"):
        _options(["a.py", "--options", text])


def test_a_limit_of_0_conversations_is_none():
    assert not of_host(ServiceConfig("a.py", max_sessions=3, max_conversations=0)).max_conversations


@pytest.mark.parametrize(
    ("journal", "why"),
    [("redis://h", "a service's name behind its URL"), ("redis://h/0?x=1#svc", "no option 'x'")],
)
def test_a_journal_that_cannot_be_used_is_said_in_a_line(journal, why, tmp_path, monkeypatch, capsys):
    (tmp_path / "agent.py").write_text("def create_agent(): return print")
    monkeypatch.setenv("AGENTMGR_SESSIONS_URL", journal)
    assert main([str(tmp_path / "agent.py")]) == os.EX_CONFIG
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1
    assert "AGENTMGR_SESSIONS_URL" not in os.environ, "what the agent starts does not get it"
