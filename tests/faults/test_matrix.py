"""The fault matrix, row by row: the tests that fail when what a row promises is broken.

`MATRIX`: what happens to instances and their manager; `SESSIONS`: to durable sessions. Of the starred rows,
`python -m tests.faults` and `python -m tests.faults.sessions` run the random ones at length.
"""

from pathlib import Path

TESTS = Path(__file__).parents[1]

MATRIX = {
    "kill -9 an instance *": """
        faults/test_crashes.py::test_kill_9_of_instances_at_random
        faults/test_stubborn_processes.py::test_a_grandchild_that_keeps_stdout_open_does_not_delay_the_notice_of_the_exit
        supervisor/test_supervisor_timing.py::test_restarts_come_after_5_10_and_20_seconds_and_then_it_is_given_up
    """,
    "kill -9 the manager at random points *": """
        faults/test_the_managers_end.py::test_kill_9_of_the_manager_at_random_points
        faults/test_the_managers_end.py::test_an_adopted_instance_is_supervised_on
    """,
    "kill -9 between spawn and commit *": """
        faults/test_the_managers_end.py::test_kill_9_between_spawn_and_commit_leaves_no_duplicate
        faults/test_scrubbed_processes.py::test_the_next_manager_ends_it_when_its_leader_is_gone
    """,
    "second manager on the database": """
        faults/test_the_managers_end.py::test_a_second_manager_refuses_and_names_the_first
    """,
    "child ignores TERM; child is SIGSTOPped": """
        faults/test_stubborn_processes.py::test_one_that_ignores_term_or_is_suspended_is_gone_at_the_deadline
        supervisor/test_supervisor_processes.py::test_one_that_ignores_term_is_killed_at_the_deadline
        supervisor/test_supervisor_processes.py::test_one_that_is_suspended_hears_the_term
        supervisor/test_supervisor_processes.py::test_the_whole_group_hears_the_term
    """,
    "setsid double-forked grandchild": """
        faults/test_stubborn_processes.py::test_a_daemon_of_a_grandchild_is_gone_after_a_stop_and_the_port_is_free
        faults/test_scrubbed_processes.py::test_it_is_gone_after_a_stop
        faults/test_scrubbed_processes.py::test_it_is_gone_before_a_crashed_leader_is_started_again
        faults/test_scrubbed_processes.py::test_an_adopted_one_is_known_as_before
    """,
    "fork bomb in one service": """
        faults/test_stubborn_processes.py::test_a_fork_bomb_is_contained_and_the_others_stay_routable
    """,
    "grandchild holds stdout after the leader's exit": """
        faults/test_stubborn_processes.py::test_a_grandchild_that_keeps_stdout_open_does_not_delay_the_notice_of_the_exit
    """,
    "child floods stdout, never a newline": """
        faults/test_logs_and_disks.py::test_a_flood_without_a_newline_is_bounded_and_blocks_nobody
        faults/test_logs_and_disks.py::test_of_what_it_says_in_one_breath_only_the_end_is_told
        faults/test_logs_and_disks.py::test_a_rotation_loses_nothing_while_the_writer_writes
    """,
    "disk full (logs, database)": """
        faults/test_logs_and_disks.py::test_with_a_full_disk_services_run_on_and_are_restarted
        faults/test_logs_and_disks.py::test_a_log_that_cannot_be_rotated_is_a_trouble_that_passes
        faults/test_logs_and_disks.py::test_a_database_that_is_locked_or_full_stops_nothing
        storage/test_sqlite_faults.py::test_a_full_disk_is_survived
    """,
    "database locked for 30 s; slow fsync": """
        faults/test_locked_database.py::test_instances_come_back_and_clients_are_served_meanwhile
        storage/test_sqlite_faults.py::test_facts_wait_while_the_database_is_locked
        storage/test_sqlite_faults.py::test_slow_work_elsewhere_does_not_hold_up_the_store
    """,
    "database corrupt, or of a newer schema": """
        storage/test_sqlite_refusals.py::test_a_bad_file_is_refused_and_untouched
    """,
    "EMFILE, EAGAIN on fork, ENOMEM": """
        faults/test_launch_failures.py::test_a_fork_that_fails_for_want_of_something_is_tried_again
        faults/test_launch_failures.py::test_without_descriptors_nothing_breaks_and_with_them_all_goes_on
        faults/test_launch_failures.py::test_without_another_thread_what_runs_is_ended_and_started_again_all_the_same
    """,
    "command missing, not executable, syntax error, import error": """
        faults/test_launch_failures.py::test_an_agent_file_that_gives_no_agent_is_an_error_at_once
        supervisor/test_supervisor_processes.py::test_a_program_that_cannot_be_executed_is_an_error_at_once
    """,
    "exits 0 at once; crashes just after ready; crashes every two windows": """
        faults/test_crashes.py::test_a_service_that_exits_with_0_at_once_is_given_up
        supervisor/test_supervisor_timing.py::test_one_that_exits_with_0_at_once_is_not_started_hot
        faults/test_crashes.py::test_a_service_that_crashes_just_after_it_is_ready_is_given_up
        core/test_restart.py::test_crashing_every_two_windows_goes_on_for_ever_at_the_first_delay
    """,
    "port taken by a stranger; by our own orphan": """
        faults/test_launch_failures.py::test_it_is_never_ready_against_a_stranger_on_its_port
        faults/test_launch_failures.py::test_an_orphan_of_ours_on_the_port_is_swept_before_the_next_launch
    """,
    "never ready; ready and then hung": """
        faults/test_hangs_and_clocks.py::test_never_ready_ends_at_the_startup_deadline
        faults/test_hangs_and_clocks.py::test_ready_and_then_hung_is_restarted_and_the_sibling_not
        faults/test_hangs_and_clocks.py::test_a_suspended_instance_is_unhealthy_and_well_again_when_it_goes_on
    """,
    "health flapping at the threshold": """
        supervisor/test_supervisor_timing.py::test_flapping_at_the_threshold_restarts_nothing
        core/test_health.py::test_flapping_at_the_threshold_is_never_overdue
    """,
    "concurrent start/stop/restart/unregister *": """
        faults/test_commands_at_once.py::test_random_commands_on_one_service
        faults/test_commands_at_once.py::test_any_schedule_of_commands_and_crashes_keeps_the_rules
        faults/test_commands_at_once.py::test_an_unregistration_wins_over_all_that_meets_it
    """,
    "stop during backoff, start, drain, rolling restart *": """
        faults/test_commands_at_once.py::test_a_stop_is_prompt_at_any_moment_and_nothing_is_launched_late
        faults/test_commands_at_once.py::test_random_commands_on_one_service
    """,
    "wall clock ± 1 day; SIGSTOP of the manager for a minute": """
        faults/test_hangs_and_clocks.py::test_a_wall_clock_that_jumps_by_a_day_restarts_nothing
        faults/test_hangs_and_clocks.py::test_a_manager_that_is_suspended_restarts_nothing_when_it_goes_on
        core/test_health.py::test_time_that_nobody_watched_does_not_count
    """,
    "pid reused after a reboot (forged row)": """
        supervisor/test_supervisor_processes.py::test_only_what_matches_in_every_point_is_adopted
        supervisor/test_supervisor_processes.py::test_what_no_record_tells_of_is_swept_and_a_forged_record_touches_nobody
    """,
    "TERM twice, INT, HUP during shutdown": """
        faults/test_the_managers_end.py::test_signals_during_the_clean_up_do_not_stop_it
    """,
    "SIGCHLD or SIGINT inherited as ignored": """
        supervisor/test_signal_dispositions.py::test_signals_inherited_as_ignored_or_blocked
    """,
    "1,000 dead grandchildren": """
        faults/test_stubborn_processes.py::test_a_thousand_dead_grandchildren_leave_no_zombies
        faults/test_stubborn_processes.py::test_as_process_1_of_a_container_orphans_are_reaped
    """,
    "200 instances started and stopped; 30 minutes of churn": """
        faults/test_scale.py::test_200_instances_are_started_and_stopped
        faults/test_scale.py::test_churn
    """,
}


SESSIONS = {
    "kill -9 of the host while 20 clients stream *": """
        faults/test_sessions.py::test_each_event_arrives_once_and_each_message_is_answered_whatever_dies
        faults/test_seamless.py::test_kills_and_restarts_under_clients_are_not_noticed
        agent/test_killed_hosts.py::test_kills_while_a_client_streams_lose_nothing_and_repeat_nothing
        journal/test_processes.py::test_what_was_called_back_as_committed_is_there_after_a_kill
    """,
    "kill -9 of everything (manager, workers, hosts), start again *": """
        faults/test_sessions.py::test_each_event_arrives_once_and_each_message_is_answered_whatever_dies
    """,
    "rolling restart, scale down, stop + start in the middle of turns *": """
        faults/test_sessions.py::test_each_event_arrives_once_and_each_message_is_answered_whatever_dies
        manager/test_sessions_go_home.py::test_whatever_changes_a_session_goes_on_where_it_is
        manager/test_drains.py::test_an_answer_that_is_thought_about_arrives_before_the_close
        agent/test_durable_sessions.py::test_a_planned_stop_leaves_a_turn_to_be_tried_again
    """,
    "holder SIGSTOPped past its take-over, then continued *": """
        faults/test_sessions.py::test_each_event_arrives_once_and_each_message_is_answered_whatever_dies
        journal/test_processes.py::test_a_holder_that_was_stopped_while_its_session_moved_writes_nothing_more
        agent/test_durable_sessions.py::test_a_host_whose_session_was_taken_over_says_nothing_more_and_sends_its_client_back
    """,
    "two instances asked for one session at once *": """
        journal/test_processes.py::test_of_several_that_want_a_session_at_once_one_has_it
        journal/test_model.py::test_a_session_has_one_holder_and_all_that_was_committed
        agent/test_durable_sessions.py::test_one_instance_holds_a_session_and_the_other_names_it
    """,
    "disk full, journal locked for 30 s, read-only, deleted under it": """
        faults/test_journals.py::test_conversations_go_on_in_memory_and_are_durable_again_by_themselves
        faults/test_journals.py::test_on_a_read_only_disk_new_sessions_are_in_memory_and_those_before_come_back
        journal/test_faults.py::test_locked_for_less_than_is_waited
        journal/test_links.py::test_after_the_journal_could_not_be_written_no_connection_goes_on_from_before
    """,
    "journal corrupt or of a newer schema": """
        faults/test_journals.py::test_what_cannot_be_read_is_set_aside_under_a_name_that_is_shown_and_the_service_runs
        faults/test_journals.py::test_conversations_go_on_in_memory_and_are_durable_again_by_themselves
    """,
    "state that JSON cannot say; 10 MB of state": """
        agent/test_durable_sessions.py::test_state_that_json_cannot_say_is_left_out_and_named
        manager/test_sessions_go_home.py::test_what_a_session_cannot_keep_is_said_where_its_service_is_shown
        faults/test_journals.py::test_ten_megabytes_of_state_are_an_error_and_the_state_before_is_kept
    """,
    "a client that never acknowledges; 50 watchers, one of them stuck": """
        faults/test_journals.py::test_a_client_that_never_acknowledges_and_50_watchers_that_are_stuck_cost_little_memory
        agent/test_durable_sessions.py::test_of_fifty_watchers_one_that_is_stuck_costs_little_and_holds_up_no_other
    """,
    "somebody else's session id": """
        agent/test_durable_sessions.py::test_the_session_of_another_identity_does_not_exist
        api/test_sessions_resource.py::test_who_may_only_read_sees_no_content_and_no_way_in
    """,
}


def test_each_row_names_tests_that_are_there():
    assert (len(MATRIX), len(SESSIONS)) == (26, 10)
    for row, nodes in (MATRIX | SESSIONS).items():
        assert nodes.split()
        for node in nodes.split():
            file, _, name = node.partition("::")
            assert f"def {name}(" in (TESTS / file).read_text(), f"{row}: {node}"
