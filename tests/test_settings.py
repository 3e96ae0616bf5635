"""Flags beat the environment, which beats `agentmgr.toml`, which beats the defaults."""

import os
import stat
from pathlib import Path

import pytest
from attrs import fields

from agentmgr.errors import DatabaseUnusable, InvalidRequest
from agentmgr.models.fields import type_of
from agentmgr.process.paths import RuntimePaths
from agentmgr.settings import LogFormat, LogLevel, Settings, environment_name, load_settings


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_defaults_are_the_guides(here):
    settings = load_settings(environ={})
    assert settings == Settings()
    assert (settings.db_path, settings.api_port, settings.proxy_port) == ("agent_manager.db", 8080, 9090)
    assert settings.health_check_interval == 10.0


def test_each_source_wins_over_the_next(here):
    (here / "agentmgr.toml").write_text('api_host = "file"\nproxy_host = "file"\nlog_format = "json"\n')
    environ = {"AGENTMGR_PROXY_HOST": "environment", "AGENTMGR_API_HOST": "environment"}
    settings = load_settings({"api_host": "flag", "api_port": None}, environ=environ)
    assert settings.api_host == "flag"
    assert settings.proxy_host == "environment"
    assert settings.log_format is LogFormat.JSON
    assert settings.api_port == 8080


def test_every_setting_has_an_environment_variable(here):
    values = {
        "log_level": "debug",
        "log_format": "json",
        "allowed_origins": "https://app.example",
        "trusted_proxies": "10.0.0.0/8",
        "proxy_protocol": "true",
        "fork_server": "false",
        "proxy_workers": "4",
        "preload_max": "7",
        "fronts": "none",
        "cluster": "joined",
        "gateways": "all",
        "node_labels": "zone=a",
        "sessions_url": "redis://host:6379/0",
    }
    for attribute in fields(Settings):
        text = values.get(attribute.name, "1234")
        settings = load_settings(environ={environment_name(attribute.name): text})
        value = getattr(settings, attribute.name)
        listed = isinstance(attribute.default, tuple)
        kind = type_of(Settings, attribute.name)
        expected = text == "true" if kind is bool else kind(text)
        assert value == ((text,) if listed else expected)
        assert value != attribute.default


@pytest.mark.parametrize("label", ["zone", "zone=", "node=x"])
def test_a_label_of_the_managers_machine_is_one_that_a_node_may_have(here, label):
    with pytest.raises(InvalidRequest, match=r"^node_labels must"):
        load_settings({"node_labels": ("a=b", label)}, environ={})


@pytest.mark.parametrize("gateways", ["", "none", "-1", "2.5", "12345"])
def test_how_many_gateways_is_head_all_or_a_number(here, gateways):
    assert load_settings({"gateways": "2"}, environ={}).gateways == "2"
    with pytest.raises(InvalidRequest, match="head, all or a number"):
        load_settings({"gateways": gateways}, environ={})


def test_the_process_environment_is_read(here, monkeypatch):
    monkeypatch.setenv("AGENTMGR_DB", "other.db")
    assert load_settings().db_path == "other.db"


def test_an_empty_variable_is_none(here):
    assert load_settings(environ={"AGENTMGR_API_PORT": "", "AGENTMGR_CONFIG": ""}) == Settings()


def test_what_a_file_names_stands_relative_to_it(here):
    (here / "conf").mkdir()
    file = here / "conf" / "a.toml"
    file.write_text('db_path = "b.db"\n')
    assert load_settings(environ={"AGENTMGR_CONFIG": str(file)}).db_path == str(here / "conf" / "b.db")
    file.write_text('db_path = "/srv/b.db"\n')
    assert load_settings(environ={"AGENTMGR_CONFIG": str(file)}).db_path == "/srv/b.db"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('api_port = "8080"', "agentmgr.toml: api_port must be a whole number, not a string"),
        ("api_port = 8080.0", "agentmgr.toml: api_port must be a whole number, not a number"),
        ("proxy_port = 70000", "agentmgr.toml: proxy_port must be a port from 0 "),
        ("apiport = 1", "agentmgr.toml: apiport unknown field"),
        (
            "health_check_interval = 0",
            "agentmgr.toml: health_check_interval must be from 0.05 to 86400 seconds",
        ),
        ("health_check_interval = nan", "agentmgr.toml: health_check_interval must be from"),
        ('log_level = "loud"', "agentmgr.toml: log_level must be one of debug, info, warning, error"),
        ("api_port = ", "agentmgr.toml is not valid TOML"),
        ("api_port = " + "[" * 100_000, "agentmgr.toml is not valid TOML: it is nested too deep"),
        ('db_path = "a\\u0000b"', "agentmgr.toml: db_path must have no NUL characters"),
        ('api_host = "\\u0000"', "agentmgr.toml: api_host must have no NUL characters"),
        ('proxy_host = "\\u0000"', "agentmgr.toml: proxy_host must have no NUL characters"),
        ("db_path = 7", "agentmgr.toml: db_path must be a string"),
        ('allowed_origins = ["app.example"]', "agentmgr.toml: allowed_origins must be origins, as in https"),
        ('allowed_origins = ["https://a.example/page"]', "allowed_origins must be origins"),
        ('trusted_proxies = ["proxy.example"]', "agentmgr.toml: trusted_proxies must be addresses"),
        ('trusted_proxies = "10.0.0.1"', "agentmgr.toml: trusted_proxies must be"),
        ('proxy_protocol = "yes"', "agentmgr.toml: proxy_protocol must be true or false"),
    ],
)
def test_a_mistake_in_the_file_names_file_and_key(here, text, words):
    (here / "agentmgr.toml").write_text(text)
    with pytest.raises(InvalidRequest) as caught:
        load_settings(environ={})
    assert words in str(caught.value)


def test_a_file_in_another_encoding_is_refused(here):
    (here / "agentmgr.toml").write_bytes(b'api_host = "\xff"')
    with pytest.raises(InvalidRequest, match="not valid TOML"):
        load_settings(environ={})


def test_a_file_that_cannot_be_read_is_named(here):
    (here / "agentmgr.toml").mkdir()
    with pytest.raises(InvalidRequest, match=r"agentmgr\.toml cannot be read"):
        load_settings(environ={})


def test_a_named_file_has_to_be_there(here):
    with pytest.raises(InvalidRequest, match=r"AGENTMGR_CONFIG names .*x\.toml, which does not exist"):
        load_settings(environ={"AGENTMGR_CONFIG": "x.toml"})


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("AGENTMGR_API_PORT", "eighty", "AGENTMGR_API_PORT must be a whole number, not 'eighty'"),
        ("AGENTMGR_API_PORT", "70000", "AGENTMGR_API_PORT must be a port"),
        ("AGENTMGR_HEALTH_CHECK_INTERVAL", "soon", "AGENTMGR_HEALTH_CHECK_INTERVAL must be a number"),
        ("AGENTMGR_PROXY_PROTOCOL", "perhaps", "AGENTMGR_PROXY_PROTOCOL must be true or false"),
        ("AGENTMGR_TRUSTED_PROXIES", "10.0.0.0/99", "AGENTMGR_TRUSTED_PROXIES must be addresses"),
        ("AGENTMGR_LOG_FORMAT", "xml", "AGENTMGR_LOG_FORMAT must be one of auto, pretty, json"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(here, variable, text, words):
    with pytest.raises(InvalidRequest, match=words):
        load_settings(environ={variable: text})


def test_a_level_may_be_written_as_elsewhere(here):
    assert load_settings(environ={"AGENTMGR_LOG_LEVEL": "DEBUG"}).log_level is LogLevel.DEBUG


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("ON", True), ("1", True), ("no", False), ("0", False)]
)
def test_a_switch_may_be_written_as_elsewhere(here, text, value):
    assert load_settings(environ={"AGENTMGR_PROXY_PROTOCOL": text}).proxy_protocol is value


def test_lists_are_given_with_commas(here):
    settings = load_settings(environ={"AGENTMGR_ALLOWED_ORIGINS": "https://a.example, HTTP://b:8000, null"})
    assert settings.allowed_origins == ("https://a.example", "HTTP://b:8000", "null")


def test_a_flag_is_as_strict(here):
    with pytest.raises(InvalidRequest, match="api_port must be a port"):
        load_settings({"api_port": -1}, environ={})
    with pytest.raises(InvalidRequest, match="colour unknown field"):
        load_settings({"colour": "red"}, environ={})


def test_the_files_of_a_database_lie_beside_it(here):
    paths = RuntimePaths.of("a.db")
    directory = Path(os.path.realpath(here)) / "a.db.d"
    assert paths.directory == directory
    assert paths.lock == directory / "lock"
    assert paths.starting_lock == directory / "starting.lock"
    assert paths.daemon_log == directory / "daemon.log"
    assert paths.logs == directory / "logs"


def test_the_directory_is_for_its_owner_only(tmp_path):
    paths = RuntimePaths.of(tmp_path / "a.db")
    paths.create()
    paths.create()
    assert stat.S_IMODE(paths.directory.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_a_directory_that_somebody_else_made_is_refused(tmp_path):
    paths = RuntimePaths.of(tmp_path / "a.db")
    paths.directory.mkdir()
    os.chown(paths.directory, 65534, 65534)
    with pytest.raises(DatabaseUnusable, match="belongs to another user"):
        paths.create()


def test_the_proxy_protocol_is_spoken_to_trusted_proxies_only():
    with pytest.raises(InvalidRequest, match="--trusted-proxy"):
        Settings(proxy_protocol=True).check_gateway()
    Settings(proxy_protocol=True, trusted_proxies=("10.0.0.0/8",)).check_gateway()
    Settings().check_gateway()
