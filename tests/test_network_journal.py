"""The address of a network journal: what is refused, and that its password is shown nowhere."""

import pytest

from agentmgr.cli.hosting import host_environment
from agentmgr.errors import InvalidRequest, StorageError
from agentmgr.models import ServiceConfig, ServiceSpec, network_journal
from agentmgr.settings import load_settings

SECRET = "redis://user:hunter2@redis.example:6380/1"


@pytest.mark.parametrize(
    ("sessions", "why"),
    [
        ("disk", "must be durable, memory, or a URL"),
        ("redis://", "no host"),
        ("redis://h:99999", "cannot be read"),
        ("redis://h:0", "no port"),
        ("unix://host/path", "no file"),
        ("unix://", "no file"),
        ("http://h", "must be redis://"),
        ("redis://h/0#x", "must be redis://"),
        (SECRET, r"write \$\{NAME\} in its place"),
        ("redis://u:hunter2/x@h", "/ is written %2F"),
        ("redis://u:hunter2?x@h", "/ is written %2F"),
        ("redis://u:hunter2:${PASS}@h", r"write \$\{NAME\} in its place"),
    ],
)
def test_what_is_no_journal_is_refused(sessions, why):
    with pytest.raises(InvalidRequest, match=why) as caught:
        ServiceConfig("agent.py", sessions=sessions)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "sessions", ["durable", "memory", "redis://h", "rediss://u:${PASS}@h:1/2", "unix:///run/s?db=3"]
)
def test_what_is_one_is_taken(sessions):
    assert ServiceConfig("agent.py", sessions=sessions).sessions == sessions


@pytest.mark.parametrize("password", ["hunter2", "a@hunter2", "hunter2:b", "b/hunter2", "a?hunter2@c"])
def test_a_password_is_shown_nowhere_however_it_is_written(password):
    shown = network_journal.shown(f"redis://user:{password}@h:1/2")
    assert shown == "redis://user:***@h:1/2"
    with pytest.raises(StorageError, match=r"journal redis://user:\*\*\*@h needs") as caught:
        network_journal.expanded(f"redis://user:{password}${{LACKING}}@h", {})
    assert "hunter2" not in str(caught.value)


def test_a_services_own_journal_comes_before_that_of_the_manager():
    def url(sessions, default, **what):
        what = what or {"agent_factory_path": "agent.py"}
        return ServiceConfig(sessions=sessions, **what).journal_url(default)

    assert url("durable", None) is None
    assert url("durable", "redis://a") == "redis://a"
    assert url("redis://b", "redis://a") == url("redis://b", None) == "redis://b"
    assert url("memory", "redis://a") is None
    assert url("durable", "redis://a", command=("x",)) is None


def test_variables_stand_for_a_password():
    assert network_journal.expanded("redis://:${PASS}@h", {"PASS": "a/b@c"}) == "redis://:a%2Fb%40c@h"
    with pytest.raises(StorageError, match="PASS is not set"):
        network_journal.expanded("redis://:${PASS}@h", {})


def test_a_service_cannot_be_given_the_managers_variable():
    given = ServiceConfig("agent.py", env={"AGENTMGR_SESSIONS_URL": "redis://h"})
    with pytest.raises(InvalidRequest, match="give the URL as sessions"):
        ServiceSpec("one", given)


def test_an_agent_that_is_served_without_a_manager_does_not_get_the_managers_journal(monkeypatch):
    monkeypatch.setenv("AGENTMGR_SESSIONS_URL", SECRET)
    assert "AGENTMGR_SESSIONS_URL" not in host_environment()


def test_the_managers_url_may_have_a_password_which_is_not_said_again():
    settings = load_settings(environ={"AGENTMGR_SESSIONS_URL": SECRET})
    assert settings.sessions_url == SECRET
    assert "hunter2" not in repr(settings)
    assert network_journal.shown(SECRET) == "redis://user:***@redis.example:6380/1"
    wrong = SECRET.replace("redis://", "http://")
    for given in ({"environ": {"AGENTMGR_SESSIONS_URL": wrong}}, {"flags": {"sessions_url": wrong}}):
        with pytest.raises(InvalidRequest, match="must be redis://") as caught:
            load_settings(**{"environ": {}} | given)
        assert "hunter2" not in str(caught.value)
