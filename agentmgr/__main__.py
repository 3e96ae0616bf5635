"""`python -m agentmgr` is the command `agentmgr`."""

from agentmgr import bootstrap


def main() -> None:
    from agentmgr.cli import main  # not before the path is in order

    main()


if __name__ == "__main__":
    bootstrap.drop_current_directory()
    main()
