"""For testing agents, and what embeds or extends agentmgr.

* an agent: `hosted` serves it in the test's own process; `agentmgr.client.open_session` converses with it,
  and `bare_client` speaks single events, and cuts the connection when told to;
* what embeds a supervisor: a `FakeLauncher` starts instances that do as told (`Behaviour`) on trio's mock
  clock, so that an hour of crashes takes a millisecond;
* what uses a store: `MemoryStore` has the same contract as the one on disk.
"""

from .agents import BareClient, bare_client, hosted
from .fake_launcher import Behaviour, FakeLauncher
from .memory_store import MemoryStore

__all__ = ["BareClient", "Behaviour", "FakeLauncher", "MemoryStore", "bare_client", "hosted"]
