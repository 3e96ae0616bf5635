"""Instances on other machines: the manager's side of the nodes.

Parts, in reading order:

* `launcher`: implements `supervisor.launcher` over all nodes; `core.placement` chooses among them. The slot
  and the child of an instance on another node are `remote_slot` and `remote_child`.
* `node_handle`: one node, with its link and the calls that outlive it; `nodes`: all, and which are alive.
* `listener`: where nodes link, by certificate (`accepting`: however many dial at once; `newcomers`: who that
  is, is not known yet); `joining`: who may be a node.
* `bundles` and `packing`: directories of agent files, sent as archives; `remote_log`: logs on nodes;
  `remote_sessions`: journals on nodes; `gateways`: gateway workers on nodes.
* `claims`: what is reserved for our instances, by an engine, and which machines that has; `claim_demands`:
  what it is asked for.
* `engine`: what knows the machines and reserves parts of them, where a cluster has that. `ray_engine`: it
  is Ray, which `ray_bridge` talks with, a process of its own; `ray_protocol`: what the two say to each
  other; `ray_demands`: what is asked for, as Ray has it; `ray_keeper`: what is done on each machine.

Words:

* linked: its daemon has a link, and has said all that it runs; silent: it has none, and its instances are
  taken to live; lost: given up, until it links again; forgotten: given up for good, by an operator.
* stray: what a node runs and this manager has replaced, or does not know. (An orphan, as in
  `agentmgr.supervisor`, is a process that not even the node's daemon knows.)
* attached: a child of this manager: it gets what its node reports of it.
* bridge: the process of this manager that alone talks with Ray; keeper: the task that the bridge has done on
  each machine, which keeps our daemon there.
* hold: a claim on next to nothing, on each machine that has instances, so that the engine does not remove it.

Invariants:

* A child is adopted at once, and found out about when its node links: until then it is taken to live.
* What a node runs and the manager has replaced or does not know is ended there, by id and token; not before
  the manager has adopted all that it knows.
* A call waits for its answer over any number of links; it ends when its node is given up.
* Nothing waits for one node on behalf of another; only the first placements of a new manager wait, for some
  seconds, for the nodes that it knows, and for those that its engine starts.
"""
