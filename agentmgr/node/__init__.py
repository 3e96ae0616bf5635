"""What runs on a node: the daemon, its instances, and what they need there.

Parts, in reading order:

* `protocol`: what a manager and a daemon say to each other; `talk`: one link between them.
* `node`: the daemon's life and its link; `orders`: each order is done once, however often it is asked.
* `instances`: all instances, and what is ordered about them; `instance`: one, with its child; `journal`: what
  the next daemon has to know of them.
* `bundles`: the directories that were sent for agents to run in; `logs`: what their managers read of them;
  `session_archives`: the same of journals; `session_moves`: journals that leave, or arrive;
  `checkup`: what `agentmgr doctor` wants to know; `gateways`: the gateway workers of the node.
* `daemon`: `agentmgr node`, all of it wired; `joining`: how a machine becomes a node; `following`: where its
  manager is; `draining`: how it has its manager move away what it runs; `kept`: the
  nodes that Ray had started.

Invariants:

* What a node runs lives on without a link and without a daemon, except where `on_manager_death` is `die`.
* An instance id has one child at a time, whatever managers ask.
* A launch is written down before it is answered. What is not written down is ended by the next daemon, before
  that links with a manager.
* Nothing is ended by its id alone: the token of its launch has to be the one that is meant.
* Of two managers the newer one is obeyed (`agentmgr.generation`), wherever each is.
* What is silent is not dead: only the manager decides that a node is lost. A daemon ends by itself what dies
  with its manager, 30 s after its link went down, and all that it has, 10 minutes after it learned that its
  node was forgotten.

A daemon must not know the manager's code: only `protocol` joins the two.
"""
