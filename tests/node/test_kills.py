from tests.node.kills import storm


def test_no_kill_starts_an_instance_twice_or_leaves_an_orphan_or_ends_another_one():
    """The command beside this file does the same with as many seeds as it is told."""
    storm(seed=3, rounds=2, instances=3)
