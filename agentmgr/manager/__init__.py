"""Wires storage, supervisor and gateway into one `AgentManager`, which every interface calls.

In reading order:

    manager          `AgentManager`: all that can be asked of a manager. It has a `ManagerLife`, and asks the
                     `ControlPlane` that this keeps
    life             how a manager takes the database, starts what should run, and ends in order
    control_plane    the live parts, wired: store, registry, supervisor, gateway, workers and those below
    services         what an operator does with services, step by step
    stored_sessions  conversations: read off their journals, erased, pruned, copied
    network_journals the journals that are on the network, and what is said there of instances that ended
    session_views    what is read off journals, as interfaces show it
    sessions         conversations as above, and spoken in, as a client of the instance that has them
    registry         services and rules, in memory and in the store, never apart
    publisher        the routing table: made after each change, given to the gateway and its workers
    jobs             what is known of each job's runs: in step with its instances, and in the store
    scaling          services with a range of instances run as many as their load needs
    on_demand        wakes services that are asleep when something wants them, and puts them to sleep
    scheduler        when jobs run by their schedules
    reloading        services whose files are saved run the new code
    hooks            what a person should know of, by the command or URL of a service
    recorder         what supervisor and gateway report: written down, counted, measured for `/metrics`
    events           what happened, for those who follow
    summaries        one short row for each service, made anew when it changes
    sampling         figures of each second, while there are viewers
    doctor           what is wrong with files, ports and services, and what to do
    minutes          what each service did, written down once a minute
    listeners        the gateway's address, served by this process or by workers; the names of all listeners
    tokens           which tokens are valid, and whether API and gateway ask for one
    tickets          keys that open something once, soon
    gateway_access   who may use the gateway: tokens, and tickets for one connection
    console          who may log in to the API's page, and where that page is
    worker_set       the worker processes that serve the gateway on one port: start, adoption, restart, end
    worker_manager   the orders that workers get and their reports: seats, tables, connections
    connections      the open connections of this process's gateway and of workers, listed and counted
    worker_handle    one worker: its link, what it has reported; `latest_table` what it is sent of the table
    node_workers     whether the workers on nodes live, and what their leases say
    cluster          the nodes (`agentmgr.cluster`), wired; imported only with `--cluster`
    cluster_ray      what of it is Ray's, with `--cluster ray`
    node_views       what of a node is shown
    node_drain       a node's instances move to others, before its machine goes
    session_moves    journals follow their service's instances to other nodes
    node_doctor      what is wrong with nodes, and what to do
    factory_path     where an agent's factory is: a file, a file and a name, or a module and a name

Invariants:

* One manager per database, held by a lock that dies with its process.
* What was answered is durable: a change is in the store before the call returns, and in memory after it is
  there.
* The gateway's table follows every change; `published()` returns when gateway and workers use the new one.
* `max_sessions` is exact over this process and all workers: the manager grants each seat.
* A manager that dies takes nothing with it that is to live: instances and workers go on, and the next
  manager adopts them.
* Cancelled, it ends as `agentmgr shutdown` does: drain, stop, store; and `hurry` cuts that short.

Words: *plane*, the live parts of one manager; *stale*, a table that a change has outdated; *seat*, the right
to open one connection to an instance; *to publish*, to give gateway and workers a new table; *peak*, the
most connections at once; *degraded*, it runs on while something does not work (`troubles`).

It must not know HTTP or the command line. Supervisor and gateway must not know each other, or it.
"""

from .manager import AgentManager

__all__ = ["AgentManager"]
