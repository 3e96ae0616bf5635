"""Keeps instances of services running: starts processes, watches them, restarts them, drains and ends them.

Parts, in reading order:

* `supervisor`: the commands (start, stop, restart, shutdown); `tasks`: one task per instance, and how one
  begins; `service`: the instances of one service, and the order in which services stop; `moving`: how some of
  them move to other machines; `adoption`: which processes of an earlier manager are taken over, and what it
  had begun.
* `instance`: one instance from its first launch to its end, in one coroutine. It uses `start_permit` (what it
  waits for before a launch), `health_watch` (when to check, and the verdict), `draining`, and `endings` (why
  it has ended). What follows from an ending is decided in `core.restart`, which status comes next in
  `core.lifecycle`.
* `launcher`: the interface to what runs instances. `local` implements it with processes of this machine,
  `in_process` with async functions of this program, `agentmgr.testing.FakeLauncher` with neither.
* A local instance: `slot` launches it with `forking` (hosted agents; `fork_server` is one process that forks,
  `preloads` are such that have also imported what an agent imports) or `spawn`, `accounts`, `environment`,
  `addresses` and `limits` (`python_check`: whether a Python can host agents); `child` judges whether it is
  ready and well, with `probe`, `notices`, `own_checks` and `listening_sockets`; `process` signals and ends
  it, with all its `descendants`; `host_drain` asks an agent's host to drain, by a `host_request`.
* The marks of its processes: `instance_tokens`, `instance_lock` and its control group (`cgroup`). `procfs`
  reads them; `belonging` says by them whose a recorded process is, `pidfds` how another's child ended.
* All local instances: `upkeep` bounds their `logs` (`writes`: which are written to; `log_file`: the last
  lines and new ones; `log_window`: any part, by position; `log_times`: when lines were written) and samples
  their usage; `guard` starts `guard_main`, the process that ends commands whose manager died.
* `log_source`: the interface to what an instance wrote, wherever that is; `tail` shows several of them.
* `system`: what all this needs of the kernel.
* `recorder`: what the outside learns of the instances.

Invariants:

* A failure in one instance's task, of whatever kind, reaches no other instance.
* An instance is launched again only after all descendants of its last process have been ended.
* A pid alone never identifies a process: it is signalled through a pidfd, after its marks were read again.
* A record is written before an instance counts as running, unless the disk fails: no instance waits for a
  disk.
* A process is adopted only if pid, start time, boot and token are the recorded ones. A process that was
  started from another log directory is neither adopted nor ended.
* A stop wins over any start or restart that was asked for before it.

Glossary:

* slot: where one instance runs, over its restarts (`Slot`): its address, environment, limits. Position: its
  number in its service's list, from 0. The field `slot` of `Instance` and `InstanceRecord`, the JSON key and
  the column of the database hold the position; users see them, so they keep that name.
* child: one launched process or function, until it has ended. Descendants: the child with all that it
  started. Orphans: processes of instances that are no more. Sweep: at its start the supervisor ends the
  orphans that a killed manager of the same log directory left.
* instance token: the secret of one launch, in its environment. Instance lock: a lock that descendants
  inherit; while it is held, one of them lives. Lifeline: the pipe whose end tells an agent's host that its
  manager is gone.
* draining: no new sessions, open ones may end. Misfortune: a cause outside of the instance, such as a taken
  port.

The supervisor must not know the store, the gateway, or the API: it reports to an `InstanceRecorder`.
"""

from .in_process import InProcessService, in_process
from .launcher import Launcher
from .recorder import InstanceRecorder, NullRecorder
from .supervisor import Supervisor

__all__ = [
    "InProcessService",
    "InstanceRecorder",
    "Launcher",
    "NullRecorder",
    "Supervisor",
    "in_process",
]
