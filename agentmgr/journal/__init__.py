"""The journal: where conversations are kept, so that they outlive the process that has them in memory.

In reading order:

    journal   what a host asks of a journal, and the values that go in and out
    memory    one that keeps nothing
    durable   one that outlives its hosts: the task that writes, what is done when it cannot, and what it asks
              of a store
    sqlite    the store that is an SQLite file
    held      a session that a host holds, between its copy in memory and that task
    holders   which hosts live
    file      the file as a host has it open
    schema    its tables, opening it, setting one aside that cannot be used
    links     what is kept of clients' connections, so that they outlive their host
    writing   the changes of many sessions in one transaction; claims
    reading   a session, and its events
    archive   the sessions as a manager sees them: lists, erasing, pruning; what it asks of any journal
    sqlite_archive  the same of one SQLite file: functions of its path
    file_archive    an archive of such files
    moving    a journal's sessions move to another machine
    copies    of whole journals, for `agentmgr backup` and `restore`

In Redis, for services on more than one machine; those above import none of these, and `redis_connection`
alone imports coredis:

    redis             the store that is a Redis
    redis_keys        how a journal lies there
    redis_scripts     what is done there as one
    redis_writing     changes, as the commands that make them
    redis_reading     a session, and its events
    redis_leases      which hosts live
    redis_connection  where it is, and how it is asked
    redis_look        whether sessions are safe there
    redis_archive     the sessions as a manager sees them
    redis_archive_scripts  what it does there as one

A host *holds* a session while it has a copy of it in memory. What happens to the copy is a `Change`: it is
handed over without waiting, and one writer commits all that is pending, of all sessions, in one transaction.
Then each copy hears how far it is kept (`Copy.committed`), and what was waiting for that goes to clients.

Invariants:

* An event reaches a client only after it is committed, or while the journal is degraded. So no restart makes
  a client hold an event that its session does not, nor numbers two events alike.
* One host holds a session. A claim raises the session's epoch; each write names the epoch of its holder and
  changes nothing when that is old: an instance that wakes up after its session moved writes nothing more.
* A holder that lives is not robbed. Its lock file, which the kernel releases with its process, says so; in
  Redis a lease that it renews.
* While a journal cannot be written, sessions go on in memory; once it can, each is written anew from its
  copy, and no host goes on with a connection from what was kept of it before. Nothing that waits for a disk
  grows without bound.
* Nothing is stored twice: the history of a session is read from its turns.

It knows nothing of clients, sockets, agents or managers.
"""
