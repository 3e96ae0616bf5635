"""Other users as which services may run: only root can change to one."""

from __future__ import annotations

import os
import pwd
from typing import TypedDict

from attrs import frozen

from ..core.restart import Cause
from .launcher import CannotLaunch


class Identity(TypedDict, total=False):
    """For `subprocess.Popen`."""

    user: int
    group: int
    extra_groups: list[int]


@frozen
class Account:
    identity: Identity
    variables: dict[str, str]


def unusable(name: str) -> str | None:
    """Why this manager cannot run a service as that user; None if it can."""
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        return f"is not known on this machine: {name!r}"
    if os.geteuid() not in (0, entry.pw_uid):
        return "can be another one only where root runs the manager"
    return None


def find_account(name: str) -> Account:
    """Raises `CannotLaunch`."""
    if (problem := unusable(name)) is not None:
        raise CannotLaunch(Cause.CANNOT_EXECUTE, f"the user {problem}")
    entry = pwd.getpwnam(name)
    variables = {"HOME": entry.pw_dir, "USER": name, "LOGNAME": name}
    if os.geteuid() != 0:  # it is this user
        return Account(Identity(), variables)
    groups = os.getgrouplist(name, entry.pw_gid)
    identity = Identity(user=entry.pw_uid, group=entry.pw_gid, extra_groups=groups)
    return Account(identity, variables)
