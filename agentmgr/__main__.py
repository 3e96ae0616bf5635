"""`python -m agentmgr` is the command `agentmgr`."""

from agentmgr.cli import main

if __name__ == "__main__":
    main()
