"""What runs on a node: the daemon, its instances, and what they need there.

Parts, in reading order:

* `protocol`: what a manager and a daemon say to each other; `talk`: one link between them.
* `node`: the daemon; `orders`: each order is done once, however often it is asked; `instance`: one instance
  and its child; `journal`: what the next daemon has to know of them.
* `bundles`: the directories that were sent for agents to run in.

Invariants:

* What a node runs lives on without a link and without a daemon, except where `on_manager_death` is `die`.
* An instance id has one child at a time, whatever managers ask.
* A launch is written down before it is answered. What is not written down is ended by the next daemon, before
  that links with a manager.
* Nothing is ended by its id alone: the token of its launch has to be the one that is meant.

A daemon must not know the manager's code: only `protocol` joins the two.
"""
