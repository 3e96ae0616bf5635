"""Whether the Python that a service names can run a hosted agent."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from .. import bootstrap

_TIMEOUT_S = 10


def unfit_python(python: str, variables: Mapping[str, str]) -> tuple[str, str]:
    """Why it cannot, and what to do; empty where it can. It blocks. `variables`: of the service."""
    try:
        check = subprocess.run(
            bootstrap.words("--check", python),
            env=bootstrap.environment({**os.environ, **variables}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return f"{python} did not answer within {_TIMEOUT_S} s", "name another Python"
    if check.returncode == os.EX_CONFIG:
        seen, _, command = check.stderr.removeprefix("agentmgr: ").strip().partition(":\n")
        return seen, f"`{command}`" if command else "name another Python"
    if check.stdout.strip() != "ok":
        return f"{python} does not work as a Python: exit code {check.returncode}", "name another Python"
    return "", ""
