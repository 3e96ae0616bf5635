"""What a node has for services to run with, besides what is sent along with them."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

import trio
from attrs import frozen

from ..models import ServiceSpec
from ..supervisor.python_check import unfit_python


@frozen
class Examine:
    """Answered by `Examined`."""

    pythons: tuple[str, ...] = ()  #: that services name


@frozen
class Examined:
    packages: Mapping[str, str]  #: the versions of what is installed beside its agentmgr, by normal name
    free_bytes: int  #: where its daemon keeps logs and bundles
    open_files: int | None  #: the hard limit; None: there is none
    unfit: Mapping[str, str]  #: of `pythons`, and why
    advice: Mapping[str, str]  #: the same, and what to do there


class Checkup:
    def __init__(self, directory: Path) -> None:
        """`directory`: of the daemon."""
        self._directory = directory
        self._limiter = trio.CapacityLimiter(1)

    async def answer(self, order: Examine) -> Examined:
        return await trio.to_thread.run_sync(
            partial(_examined, order, self._directory), limiter=self._limiter
        )


def _examined(order: Examine, directory: Path) -> Examined:
    unfit, advice = {}, {}
    for python in order.pythons:
        found = shutil.which(python)
        seen = unfit_python(found, {}) if found else (f"{python} is not found", "make it there")
        if seen[0]:
            unfit[python], advice[python] = seen
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Examined(
        packages(),
        shutil.disk_usage(directory).free,
        None if most == resource.RLIM_INFINITY else most,
        unfit,
        advice,
    )


def packages() -> dict[str, str]:
    """The versions of what this Python has installed, by normal name. It blocks."""
    found = {}
    for each in metadata.distributions():
        if (name := each.metadata["Name"]) is not None:  # what a broken installation has left has none
            found[re.sub(r"[-_.]+", "-", name).lower()] = each.version
    return found


def lacking_python(spec: ServiceSpec) -> str | None:
    """Why this machine has not the Python that the service names; None where it has."""
    python = spec.config.python
    if python is None or os.sep not in python:
        return None
    if os.path.exists(os.path.join(spec.config.cwd or ".", python)):
        return None
    return (
        f"{python} is not there, and packages are not sent along: make that environment there, under the "
        "same path, or name the nodes that have it with --place-on"
    )
