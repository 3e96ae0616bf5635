"""`agentmgr doctor`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import AgentManagerError
from .. import environment
from ..group import Cli, format_option, subcommand
from ..managers import find_manager, with_secrets
from ..out import say_json
from ..render import print_table

if TYPE_CHECKING:
    from ...client.api import ManagerClient
    from ...manager.doctor import Finding, Known
    from ...settings import Settings


@subcommand("doctor", example="agentmgr doctor")
@format_option
async def command(cli: Cli, output: str) -> int:
    """Check the database, its files, the ports, the services and their files, and leftovers.

    Exit code 1 when something is wrong; each finding says what to do about it.
    """
    from ...manager import doctor  # with all of the manager: 0.1 s

    findings: list[Finding]
    try:
        settings = cli.settings()
    except AgentManagerError as error:
        findings = [
            doctor.versions(), doctor.Finding("settings", "error", error.message, "see the message")
        ]  # fmt: skip
    else:
        client = (await find_manager(cli.paths)).client
        info = await client.get_info() if client is not None else None
        known = await _known(cli, client)
        findings = doctor.examine(cli.paths, settings, known, info)
        for service in known.services if isinstance(known, doctor.Known) else ():
            if lacks := environment.lacking(cli.paths, service):
                seen = f"it requires {', '.join(lacks)}, which this shell has and it lacks"
                words = " ".join(f"--env-from-shell {variable}" for variable in lacks)
                advice = f"`agentmgr restart {service.name} {words}`"
                findings.append(doctor.Finding(f"service {service.name}", "warning", seen, advice))
        if client is not None and info is not None:
            findings += await _of_manager(client)
        elif isinstance(known, doctor.Known):
            findings += await _of_journals(cli, settings, known)
        if info is not None and (missed := environment.stale(cli.paths)):
            seen = f"the manager does not have this shell's {', '.join(missed)}"
            findings.append(doctor.Finding("environment", "warning", seen, environment.advice()))
    if output == "json":
        say_json(findings)
    else:
        print_table(
            ["check", "result", "found", "what to do"],
            [[f.what, f.result, f.found, f.advice] for f in findings],
            empty="",
        )
    return int(any(finding.result == "error" for finding in findings))


async def _of_manager(client: ManagerClient) -> list[Finding]:
    """What only the manager can ask: nodes, and journals whose addresses are in its environment."""
    from ...manager.doctor import Finding

    return [
        Finding(**found)
        for found in await client.diagnose()
        if found["what"] == "cluster" or found["what"].startswith(("node ", "sessions in "))
    ]


async def _of_journals(cli: Cli, settings: Settings, known: Known) -> list[Finding]:
    from ...manager.network_journals import NetworkJournals

    directory = cli.paths.sessions
    return await NetworkJournals(settings.sessions_url, lambda: known.services, directory).examine()


async def _known(cli: Cli, client: ManagerClient | None) -> Known | Finding:
    """What the database has, and how its services do where a manager runs."""
    from ...manager import doctor
    from ..offline import offline

    try:
        async with offline(cli.paths) as manager:
            return doctor.Known(
                await (manager.list_services() if client is None else with_secrets(client)),
                manager.instances,
                await manager.list_tokens(),
                await manager.get_token_policy(),
            )
    except AgentManagerError as error:
        return doctor.Finding("database", "error", error.message, "see the message")
    except OSError as error:
        return doctor.refused("database", error)
