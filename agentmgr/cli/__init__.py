"""The command line: one module per command, each imported only when it is called.

In reading order:

    entry            runs a command; turns however it ends into an exit code and one line on stderr
    group            the commands by name, and what all have in common: `Cli`, its paths and settings
    managers         which manager a command asks: the one that runs, one that it starts, or `offline`, the
                     database where none runs; `manager_interface`: what all three can be asked
    commands         the commands, one file each
    foreground       a command that is the manager: `daemon`, `run`, and `api` and `proxy` without another one
    signals          what stops such a command, and what systemd hears of it
    listeners        the gateway and the API that `daemon`, `api` and `proxy` open, also beside a manager
    declaration      services and rules in a TOML file, for `apply` and `export`
    out, render      the one writer to the terminal; tables for people, JSON for programs
    watch            what happens while a command waits or watches; `environment`, what services do not get of
                     this shell
    names, options, manager_options           parameters that several commands have
    selection, json_output                    which services a command is for; which keys its JSON has
    hosting, reloading                        `serve`: a host without a manager, replaced when files are saved
    terminal, screen, talk, plain_chat        the parts of `chat`, with `line_editor`, a process of its own;
                                              `gateways`: where it and `acp` find agents

Exit code 0: done; 1: it could not be done, and one line on stderr says why; 2: wrong usage; 128 + N: ended
by the signal N.

Invariants:

* A command decides nothing that the manager decides: it calls `ManagerClient`, or reads the database.
* Only a manager writes to the database (but `restore` replaces the file when none runs). The process that
  holds the database's lock is the manager. A command asks once which one is there, and passes it on.
* Results go to stdout and remarks to stderr; with `--format json` stdout is JSON alone.
* What clients, agents and other servers wrote is printed only through `visible`: no escape sequence gets
  through.
* The first stop signal ends in good order, the second stops waiting for sessions, the third kills.
* What a short command does not need is not imported: `agentmgr --version` imports nothing.

Words: *foreground*, this process is the manager; *background*, a command started the manager; *beside*, this
process serves the gateway and another one is the manager; *note*, a line on stderr; *standing*, how a service
is, in a few words.

Other packages must not import it.
"""

from __future__ import annotations

import gc
import sys

from .. import __version__, bootstrap

TYPE_CHECKING = False  # as in typing, see `agentmgr.bootstrap`
if TYPE_CHECKING:
    from typing import NoReturn


_GARBAGE = 10_000
"""New objects between two looks for garbage; Python's own is 700. A manager has 190 objects for each
instance: by that, looks at all of them were 40 % of the start of 4,000."""


def main() -> NoReturn:
    """The console command `agentmgr`."""
    if sys.argv[1:] == ["--version"]:  # what scripts ask most often needs nothing imported
        print(f"agentmgr {__version__}")
        sys.exit(0)
    bootstrap.search_last(bootstrap.python_path())
    # Imported modules live as long as the process: searching them for garbage, twice more at exit, would take
    # 30 ms of a short command's 200.
    gc.disable()
    from .entry import run

    gc.freeze()
    gc.set_threshold(_GARBAGE)
    gc.enable()
    sys.exit(run(sys.argv[1:]))
