"""For testing agents, and what embeds or extends agentmgr.

* an agent: `hosted` serves it in the test's own process; `agentmgr.client.open_session` converses with it,
  and `bare_client` speaks single events, and cuts the connection on demand;
* a client, or what embeds a gateway: a `memory_network` has listeners without ports, and refuses, delays,
  hangs and cuts what goes over it, at whatever byte;
* what embeds a supervisor: a `FakeLauncher` starts instances that do as their `Behaviour` says, crashes them,
  hangs them and refuses to start them, on trio's mock clock, so that an hour of it takes a millisecond;
* what spans machines: `memory_cluster`, a module of its own, has nodes whose cables, power and managers fail
  on demand;
* what uses a store: `MemoryStore` has the same contract as the one on disk.
"""

from ..core.restart import Cause, Exit
from ..supervisor.launcher import CannotLaunch
from .agents import BareClient, bare_client, hosted
from .fake_launcher import Behaviour, FakeLauncher
from .memory_network import MemoryListener, MemoryNetwork, memory_network
from .memory_store import MemoryStore

__all__ = [
    "BareClient",
    "Behaviour",
    "CannotLaunch",
    "Cause",
    "Exit",
    "FakeLauncher",
    "MemoryListener",
    "MemoryNetwork",
    "MemoryStore",
    "bare_client",
    "hosted",
    "memory_network",
]
