"""The public names, and only those; importing the package costs nothing."""

import ast
import inspect
import pydoc
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import agentmgr
from agentmgr.agent import Session
from agentmgr.agent.session import Session as HostedSession
from agentmgr.proxy import ConnectionObserver
from agentmgr.storage.store import Store
from agentmgr.supervisor import InstanceRecorder, Launcher

PUBLIC = {
    "agentmgr": """
        AgentManager AgentManagerError Backend ClientRequest ConditionOperator Connection Event Gateway
        HealthCheck HealthStatus Instance RestartMode RoutingCondition RoutingRule RoutingStrategy
        RoutingTable Service ServiceConfig ServiceSpec ServiceStatus Settings Supervisor
        __version__ in_process
    """,
    "agentmgr.agent": """
        Client Decision Event Message Session final_answer partial_answer thinking tool_call tool_result
    """,
    "agentmgr.api": "serve_api serve_control",
    "agentmgr.client": "AgentSession ManagerClient open_session",
    "agentmgr.client.aio": "AgentSession ManagerClient open_session",
    "agentmgr.proxy": "Authenticator Certificate Gateway GatewayLimits Identity ConnectionObserver",
    "agentmgr.supervisor": "InProcessService InstanceRecorder Launcher Supervisor NullRecorder in_process",
    "agentmgr.testing": """
        BareClient Behaviour CannotLaunch Cause Exit FakeLauncher MemoryListener MemoryNetwork MemoryStore
        bare_client hosted memory_network
    """,
}
#: Whoever implements these need not say again what their methods are for.
MODELS = (agentmgr.AgentManager, InstanceRecorder, Launcher, Store, ConnectionObserver)
NAMES = [
    (module, name) for module, names in PUBLIC.items() for name in names.split() if name != "__version__"
]


@pytest.mark.parametrize("module", PUBLIC)
def test_exactly_these_names_are_public(module: str) -> None:
    assert sorted(import_module(module).__all__) == sorted(PUBLIC[module].split())


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_each_public_name_is_there_and_says_what_it_is(module: str, name: str) -> None:
    thing = getattr(import_module(module), name)
    assert thing.__doc__
    if inspect.isclass(thing):
        assert thing.__doc__ not in {base.__doc__ for base in thing.__mro__[1:]}, "it has none of its own"
        told = {method for model in (*MODELS, *thing.__mro__) for method in documented(model)}
        ours = {
            name for base in thing.__mro__ if base.__module__.startswith("agentmgr") for name in vars(base)
        }
        methods = {name for name in ours if inspect.isfunction(getattr(thing, name)) and name[0] != "_"}
        assert methods <= told


def documented(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if inspect.getdoc(value)}


def test_type_checkers_are_told_of_the_same_names() -> None:
    tree = ast.parse(Path(agentmgr.__file__).read_text())
    told = {
        alias.asname
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert told == set(agentmgr.__all__) - {"__version__"}


def test_what_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        agentmgr.nonsense  # noqa: B018


def test_importing_the_package_imports_no_other() -> None:
    code = "import sys, agentmgr; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"trio", "attrs", "quart", "asyncio"} & set(done.stdout.split())


def test_a_host_of_the_defaults_loads_no_more_of_the_models_than_it_needs() -> None:
    """10 ms of each start are theirs, and as much are the codec's."""
    code = "import sys; from agentmgr.agent.__main__ import _options; _options(['a.py']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"agentmgr.models.services", "agentmgr.codec", "cattrs"} & set(done.stdout.split())


def test_a_package_names_its_modules_where_a_reader_begins() -> None:
    for package in Path(agentmgr.__file__).parent.glob("*/__init__.py"):
        if package.parent.name == "testing":  # it names what it exports instead, to those who write tests
            continue
        begun = ast.get_docstring(ast.parse(package.read_text())) or ""
        modules = {path.stem for path in package.parent.glob("*.py") if path.stem[0] != "_"}
        assert modules - set(re.findall(r"\w+", begun)) == set(), package.parent.name


@pytest.mark.parametrize("module", ["agentmgr", "agentmgr.client", "agentmgr.client.aio"])
def test_pydoc_shows_the_public_names(module: str) -> None:
    text = pydoc.plain(pydoc.render_doc(module))
    listed = text.partition("\nCLASSES\n")[2] + text.partition("\nFUNCTIONS\n")[2]
    assert [name for name in PUBLIC[module].split() if name[0] != "_" and name not in listed] == []


def test_an_author_sees_of_a_session_what_is_for_authors() -> None:
    seen = {name for name in {*dir(Session), *Session.__annotations__} if name[0] != "_"}
    assert seen == {"client", "confirm", "emit", "history", "id", "name", "restored", "state"}
    assert {name for name in seen if hasattr(HostedSession, name)} == {"confirm", "emit"}
