"""The commands, one file each: `agentmgr NAME` is the `command` of the module NAME."""
