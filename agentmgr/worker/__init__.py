"""A gateway worker: a process that serves the gateway, beside a manager that may come and go.

One by default; several share a port (SO_REUSEPORT). A manager starts them (`manager.worker_set`), keeps what
they report (`manager.worker_manager`), and may be killed and replaced: the workers serve on, and the next
manager takes them over. Parts, in reading order:

- `spec`: the configuration that a worker reads from stdin
- `__main__`: the process: lock file, signals, lifeline, listeners
- `worker`: the gateway and the conversation with the manager that runs (`agentmgr.link`); it
  checks tokens by the manager's last list, and has the manager redeem tickets
- `protocol`: the messages: reports of a worker, orders of a manager
- `pidfile`: how the next manager finds the workers that live

Words:

- report, order: a message of a worker, of a manager
- slot: a worker's number among those of its port, from 0
- guest: a worker of an `agentmgr proxy` in a terminal; it ends with that command, and no manager restarts it
- lifeline: a pipe whose end of file says that the process at its other end is gone
- seat: as in `proxy`; `core.shared_seats` has the rules by which workers share them

Invariants:

- Without a manager a worker serves by the last table, tokens and seats. It takes no more seats than it has.
- What happened meanwhile is reported to the next manager, before `Declared`.
- A worker of another `protocol.VERSION` is ended: it would misread its orders.
- A worker holds the lock on its file for as long as its process lives.

It must not know the supervisor, the store or the manager's code: only `protocol` joins the two.
"""
