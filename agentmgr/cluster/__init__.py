"""Instances on other machines: the manager's side of the nodes.

Parts, in reading order:

* `launcher`: implements `supervisor.launcher` over all nodes; `core.placement` chooses among them. The slot
  and the child of an instance on another node are `remote_slot` and `remote_child`.
* `node_handle`: one node, with its link and the calls that outlive it; `nodes`: all, and which are alive.
* `listener`: where nodes link, by certificate; `joining`: who may be a node.
* `bundles` and `packing`: directories of agent files, sent as archives; `remote_log`: logs on nodes;
  `gateways`: gateway workers on nodes.

Invariants:

* A child is adopted at once, and found out about when its node links: until then it is taken to live.
* What a node runs and the manager has replaced or does not know is ended there, by id and token; not before
  the manager has adopted all that it knows.
* A call waits for its answer over any number of links; it ends when its node is given up.
* Nothing waits for one node on behalf of another; only the first placements of a new manager wait, for some
  seconds, for the nodes that it knows.
"""
