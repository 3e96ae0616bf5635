"""An agent for editors: the Agent Client Protocol, version 1, over stdin and stdout, for one service.

An editor starts `agentmgr acp SERVICE` and talks JSON-RPC with it, a message a line. Each of its sessions is
a session of ours under the same id: another process loads it, on any machine that reaches the gateway. In
reading order:

    rpc           lines to messages and back; its error codes
    content       an editor's prompt, as a message to an agent
    updates       an agent's events, as `session/update`, and as the answer to a prompt
    replay        a conversation that is taken up: its events, and between them the user's messages
    peer          the connection: reads lines, answers each request in a task of its own, writes
    conversation  one session: prompts, questions, and the connection to the agent, as often as it is needed
    agent         the methods

Invariants:

* `rpc`, `content`, `updates` and `replay` do no I/O.
* Each request gets one answer, also where the agent or the gateway is gone, or the input ends. A prompt's
  comes after all updates of its turn.
* Prompts go to the agent in the order of their lines. `session/cancel` is for all that came before it.
* What the agent can be reached through is only looked for when a session needs it: `initialize` succeeds
  without a gateway, and what has failed for want of one is tried again with the next prompt.
* The end of the input ends connections, no sessions: `on_disconnect` decides what becomes of a turn.

It stands on `agentmgr.client` alone and knows nothing of the gateway but its address.
"""
