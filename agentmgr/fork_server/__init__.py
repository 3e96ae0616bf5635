"""The fork server: a process that has imported the agent host, and forks instead of starting Python again.

An agent's host takes 130 ms of imports; forked from here it has them, and shares their memory with all its
siblings. `agentmgr.supervisor.forking` is the manager's side.

In reading order:

    __main__     imports the host, then waits for requests and forks
    preloading   what makes it a second stage: it imports an agent's packages too, if it can still be forked
    sibling      the fork, whose parent is the manager
    become       what the child does to be as if it had been spawned
    in_proc      what `ps` and /proc show of it: its own command line and environment

How one instance starts:

1. The manager makes a pair of sockets and sends one of them to the fork server. The server forks, closes it,
   and is done. It never sees the instance's environment, nor its files: nothing of them can reach another
   instance through its memory.
2. The child leads a session of its own and says hello over that socket. The kernel attaches its pid.
3. The manager opens a pidfd, sets limits, and sends the command line, the environment and the descriptors.
4. The child becomes that, says so, closes the socket, and runs the host. No code of the author's ran before.

A second stage is a fork server that another one has forked, in the same four steps.

Whichever process dies on the way, the other one sees the end of the socket: a child that the manager no
longer wants ends, and a manager whose child has died gets no hello.

Invariants:

* The server has one thread, no event loop, and no open file but its socket to the manager: nothing a fork
  could break. It ends when the manager closes that socket, or dies.
* A child has nothing of the server but its modules: its own session, descriptors, environment, directory.

It must not know services, the supervisor or the store.
"""
