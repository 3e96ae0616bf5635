"""A gateway worker: a process that serves the gateway, beside a manager that may come and go.

One by default; several share a port (SO_REUSEPORT). A manager starts them (`manager.worker_set`), keeps what
they report (`manager.worker_manager`), and may be killed and replaced: the workers serve on, and the next
manager takes them over. In a cluster the daemons of nodes have one each (`node.gateways`), which reaches the
manager by TLS. Parts, in reading order:

- `spec`: the configuration that a worker reads from stdin
- `__main__`: the process: lock file, signals, lifeline, listeners
- `worker`: the gateway and the conversation with the manager that runs (`agentmgr.link`); it
  checks tokens by the manager's last list, and has the manager redeem tickets
- `dial`: how it reaches the manager
- `protocol`: the messages: reports of a worker, orders of a manager
- `kept`: what a gateway of a node leaves to the next one
- `pidfile`: how the next manager, or daemon, finds the workers that live
- `keeping`: a worker's process, from outside: started, and another one whenever it ends

Words:

- report, order: a message of a worker, of a manager
- slot: a worker's number among those of its port, from 0
- guest: a worker of an `agentmgr proxy` in a terminal; it ends with that command, and no manager restarts it
- lifeline: a pipe whose end of file says that the process at its other end is gone
- gate: in a cluster, where gateways of other nodes reach the instances of its own; some workers have no
  clients, and are there for that only
- lease: how long a worker on a node keeps its seats at instances elsewhere without a manager (`core.leases`)
- seat: as in `proxy`; `core.shared_seats` has the rules by which workers share them

Invariants:

- Without a manager a worker serves by the last table, tokens and seats. It takes no more seats than it has.
- What happened meanwhile is reported to the next manager, before `Declared`.
- A worker of another `protocol.VERSION` is ended: it would misread its orders.
- A worker holds the lock on its file for as long as its process lives.

It must not know the store or the manager's code: only `protocol` joins the two. Of the supervisor it has what
`keeping` needs to watch and end a process.
"""
