import os

# The frameworks are not among the development dependencies: `tests/adapters/run` installs them elsewhere.
collect_ignore_glob = [] if os.environ.get("AGENTMGR_TEST_ADAPTERS") else ["test_*.py"]
