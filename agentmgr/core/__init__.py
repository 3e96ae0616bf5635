"""Decides: pure functions and values, for gateway, supervisor, manager, hosts and commands.

An instance:

    lifecycle          the table of its states
    restart            why it ended, and what follows: a pause and another start, or giving up
    health             what its checks show, over time
    scaling            how many of a service run, where that is a range
    on_demand          when a service that starts on demand is asleep, and when it may fall asleep
    schedule           when a job runs next, and which runs were missed
    dependencies       in which order services end
    placement          which node of a cluster it runs on
    amounts            what is to be reserved for it there, in words, and whether any machine has as much
    gpus               which GPUs of those that are reserved on its node it uses
    moves              where sessions are whose journal has moved to another node
    patience           how long one waits for a manager that may be slow, and tries again and again
    liveness           which nodes are linked, silent or lost, and whether the manager itself is cut off
    cluster_fields     the fields of a registration that are about nodes: what is refused, what has no effect
    preloading         what a second stage of the fork server imports ahead, and which second stages there are

A client:

    request            what a client asks for, as the rules see it
    conditions         whether a rule's conditions hold for it
    routing            which service and which instance it gets, or why none
    strategies         which of several instances
    verdicts           what each rule makes of a request, for people
    affinity           a session's clients go to the instance that holds it
    outliers           instances that fail their clients are left out for a while
    admission          seats under `max_sessions`, and the rate of one address; `shared_seats`: of workers;
                       `leases`: how long a worker on a node keeps them without a manager
    table_change       how one routing table follows another
    hosts              which pages may connect; which names can only mean this machine
    proof              how gateway and host show each other that they are genuine
    gateway_headers    which headers only a gateway may send, and which it passes on for a trusted proxy
    plain_text         a conversation as lines of text

What is shown:

    view               a service and its instances, as users see them
    stats              figures; `recent`: those of the last minutes, and of the last hour
    lookup             what a user names, by name or id
    repeats            what is said once, and not again for a while
    secrets            values that are hidden, and keys that are not kept

What is accepted:

    bodies             what users may set of services and rules, over HTTP and in a declaration file

Invariants: no trio, sockets, files, clock or randomness of its own: they are passed in. A function that
decides changes nothing but the value it is a method of. Nothing here logs.
"""
