from attrs import evolve, fields

from agentmgr.agent.__main__ import _options, _parser
from agentmgr.core.hosting import host_flags
from agentmgr.models import OnDisconnect, Runtime, ServiceConfig, WhenBusy


def test_what_a_configuration_says_of_sessions_reaches_the_host():
    config = ServiceConfig(
        agent_factory_path="a.py", runtime=Runtime.TRIO, max_sessions=3, session_timeout=4.5,
        max_message_bytes=5, turn_timeout=6, confirm_timeout=7, on_disconnect=OnDisconnect.CANCEL,
        disconnect_grace=8, when_busy=WhenBusy.REJECT,
    )  # fmt: skip
    options = _options(_parser().parse_args(["a.py", *host_flags(config)]))
    assert options.max_conversations == config.max_sessions == 3
    for name in ("runtime", "max_message_bytes"):
        assert getattr(options, name) == getattr(config, name)
    for limit in fields(type(options.limits)):
        if not limit.name.startswith("buffer_"):
            assert getattr(options.limits, limit.name) == getattr(config, limit.name)


def test_the_hosts_defaults_are_those_of_a_service():
    assert _options(_parser().parse_args(["a.py"])) == evolve(
        _options(_parser().parse_args(["a.py", *host_flags(ServiceConfig())]))
    )


def test_a_host_has_its_own_limit_of_conversations_and_reads_its_old_name():
    config = ServiceConfig(agent_factory_path="a.py", max_sessions=3, max_conversations=50)
    assert _options(_parser().parse_args(["a.py", *host_flags(config)])).max_conversations == 50
    assert _options(_parser().parse_args(["a.py", "--max-sessions", "3"])).max_conversations == 3
