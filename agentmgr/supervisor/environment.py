"""The environment of a child process."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from attrs import evolve

from ..core.restart import Cause
from ..errors import StorageError
from ..models import ServiceConfig, network_journal
from ..models.network_journal import SESSIONS_URL
from ..process.paths import file_of
from ..process.trust import Distrusted, read_text
from .launcher import CannotLaunch

# Variables for the manager itself: of its service manager, to which a child would answer in the manager's
# name; and an operator's key to the API and the gateway, which an agent must not have.
_MANAGERS_OWN = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "AGENTMGR_TOKEN",
    SESSIONS_URL,  # a host gets that of its service
    "AGENTMGR_NODE",  # of the instance that a nested manager itself is
)

OF_RAY = "RAY_"
"""Variables for Ray: its token is one of them, with which whoever has it can run anything on all machines."""
GPUS = "CUDA_VISIBLE_DEVICES"
"""The GPUs that a process may use, by their numbers; ROCm reads it too. Empty: none."""


def digest(config: ServiceConfig) -> str:
    """Of what the agent file and the env file contain; a file that cannot be read counts as empty.

    A secret, as whoever has it can try out what a short env file might contain.
    """
    found = sha256()
    for path in (file_of(config.agent_factory_path or ""), config.env_file):
        found.update(b"\0")
        if path is not None:
            with suppress(OSError):
                found.update(_bytes(Path(config.cwd or ".", path)))
    return found.hexdigest()


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""  # a named pipe would be waited for


def of_child(
    config: ServiceConfig, ours: Mapping[str, str], *, withheld: str | None = None
) -> dict[str, str]:
    """The manager's environment, then the file's, the service's, and `ours`. Raises `CannotLaunch`.

    `withheld`: the prefix of variables of the manager that it does not get.
    """
    variables = {
        name: value
        for name, value in os.environ.items()
        if not (name in _MANAGERS_OWN or (withheld and name.startswith(withheld)))
    }
    variables["PYTHONUNBUFFERED"] = "1"
    if config.env_file is not None:
        variables |= _read(Path(config.cwd or ".", config.env_file), variables)
    variables = {**variables, **config.env, **ours}
    if lacking := sorted(name for name in config.required_env if not variables.get(name)):
        reason = (
            f"{', '.join(lacking)} not set, which it requires: services get the environment that the manager "
            f"was started with; `agentmgr restart {ours['AGENTMGR_SERVICE']} --env-from-shell {lacking[0]}` "
            "gives it a shell's"
        )
        raise CannotLaunch(Cause.CANNOT_EXECUTE, reason)
    return variables


def with_file(config: ServiceConfig) -> ServiceConfig:
    """The configuration with what its env file says in `env`, for a machine without that file. Raises
    `CannotLaunch`.
    """
    if config.env_file is None:
        return config
    of_file = _read(Path(config.cwd or ".", config.env_file), os.environ)
    return evolve(config, env=of_file | dict(config.env), env_file=None)


def expanded(url: str) -> str:
    """The address of a network journal, with the values of the variables that it names. Raises
    `CannotLaunch`.
    """
    try:
        return network_journal.expanded(url, os.environ)
    except StorageError as error:
        raise CannotLaunch(Cause.CANNOT_EXECUTE, error.message) from None


def names_given(config: ServiceConfig) -> frozenset[str]:
    """The variables that `env` and the env file set, which may not be readable."""
    with suppress(CannotLaunch):
        if config.env_file is not None:
            return frozenset(config.env) | _read(Path(config.cwd or ".", config.env_file), {}).keys()
    return frozenset(config.env)


def _read(file: Path, known: Mapping[str, str]) -> dict[str, str]:
    """The variables of a `.env` file, by the rules of python-dotenv; `${NAME}` has its value from before.

    Not by its `dotenv_values`, which logs what it cannot parse and goes on.
    """
    from dotenv.parser import parse_stream  # 10 ms that only such a file needs

    try:
        text = read_text(file, "utf-8-sig", waits=False)  # in the loop of the manager, which must not wait
    except Distrusted as why:
        raise CannotLaunch(Cause.CANNOT_EXECUTE, str(why)) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot read the environment file {file}: {getattr(error, 'strerror', None) or error}"
        raise CannotLaunch(Cause.CANNOT_EXECUTE, reason) from None
    found: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        original = binding.original.string
        number = binding.original.line + original[: -len(original.lstrip())].count("\n")
        if "\0" in original:
            raise CannotLaunch(Cause.CANNOT_EXECUTE, f"{file}, line {number}: a null character")
        if binding.key is not None and binding.value is not None:
            found[binding.key] = "".join(_expanded(binding.value, {**known, **found}))
        elif binding.error or binding.key is not None:
            problem = "not of the form NAME=value, with both its quotes if it has one"
            raise CannotLaunch(Cause.CANNOT_EXECUTE, f"{file}, line {number}: {problem}")
    return found


def _expanded(value: str, known: Mapping[str, str]) -> Iterator[str]:
    from dotenv.variables import parse_variables

    return (part.resolve(known) for part in parse_variables(value))
