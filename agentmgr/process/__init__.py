"""Our own process: its files, its sockets, its descriptors, and who is at the other end of them.

In reading order:

    paths            paths as users name them; `RuntimePaths`, the files that belong to a database
    trust            which files are believed: those that no other user can write
    locks            flock(2) on open files
    ownership        one manager per database: a lock that ends with its process
    listening        binding an address, with errors that a user understands
    control_socket   the manager's unix sockets, which only its own user can open
    peer             which user is at the other end of a connection
    handover         hands a value and open descriptors to another process, as to a fork server
    descriptors      how many files may be open at once, here and in children
    detached         starts processes of ours that outlive this one
    watching         saves of files: which count, and which are one
    zones            time zones, as this machine knows them
    command          runs a short command of the user's, with bounded output
    companion        a coroutine that runs beside the body of an `async with` block, or between two calls

Invariants:

* A lock, a socket file and a directory belong to the user who runs this, and others cannot open them.
* What ends with the process is never stale: locks are the kernel's (`flock`), not files that say so.
* Errors name the path and what to do.

It must not know services, instances, the gateway or the store.
"""
