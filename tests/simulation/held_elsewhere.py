"""Safeguards whose absence does no harm that a simulated cluster shows, or too rarely, and the tests that hold them."""

from __future__ import annotations

CLOSED = "test_after_a_stall_connections_are_closed_and_what_waits_in_them_is_not_carried_out"

HELD_ELSEWHERE: dict[str, tuple[str, str, str]] = {
    "promises that must stand": (
        "what was computed before a change being stored after it",
        "unit/test_store.py::test_without_a_promise_nothing_is_accepted",
        "every change leaves a higher version or floor behind, which refuses the fill as well",
    ),
    "promises that refuse what is lower": (
        "a change being made below a promise, and lost to what was computed before it",
        "unit/test_rules_at_random.py::test_the_harm_is_found_when_a_rule_is_taken_out[without_barriers-1000]",
        "such a change voids the promise: harm takes a ballot that was accepted at one owner alone",
    ),
    "a majority of promises to fill": (
        "a fill whose promises a change need not meet",
        "unit/test_ops_load.py::test_with_promises_of_fewer_than_a_majority_no_fill_is_sent",
        "promises are to stand at a majority anyway when the value comes: harm takes one that came too late",
    ),
    "telling writes of former promises": (
        "a write taking itself for overtaken by what was decided without seeing it",
        "unit/test_service.py::test_a_write_that_something_newer_beats_may_be_beaten_by_who_had_not_seen_it",
        "it takes three that meet within one round trip",
    ),
    "voiding promises of incomplete slots": (
        "promises that have missed the writes in between",
        "unit/test_store.py::test_what_was_promised_before_a_slot_was_completed_is_void_and_what_it_kept_out_stays_out",
        "a promise rarely outlives the completing of its slot",
    ),
    "connections that live until the end": (
        "counting on the word of a process that has ended since",
        "unit/test_ops_write.py::test_an_acknowledgement_whose_connection_broke_before_the_end_does_not_count",
        "the node has to end within the one call, and to be complete again soon",
    ),
    "connections of prompt answers that live until the end": (
        "a prompt read counting on the word of a process that has ended since",
        "unit/test_prompt_aio.py::test_an_answer_whose_connection_breaks_before_the_last_one_comes_does_not_count",
        "the node has to end between two answers of one read, and what it answered has to be forgotten by all but one",
    ),
    "complete bits of prompt answers": (
        "a node that lost its memory having a say in what is read promptly",
        "unit/test_ops_prompt.py::test_what_an_incomplete_owner_answers_is_never_agreed_on",
        "others have to give the same answer, and it has to be an old one",
    ),
    "clocks that never go back": (
        "two versions of one writer being the same",
        "unit/test_record.py::test_stamps_only_grow_whatever_the_wall_clock_does",
        "a clock has to be set back to the very millisecond of another write of the key",
    ),
    "a majority of answers": (
        "a miss of what a majority holds; in linearizable mode see above",
        "unit/test_ops_read.py::test_fewer_than_q_complete_answers_are_a_quorum_error",
        "a miss is always allowed: what is returned a majority has to hold, however many were asked",
    ),
    "quorums on the old ring": (
        "those who know the old ring alone not meeting those who know the next one",
        "unit/test_ops_changing.py::test_a_quorum_on_the_next_ring_alone_is_not_enough",
        "newcomers that have not completed do not count anyway, and those that have know what the old ring knew",
    ),
    "making linearizable writes once": (
        "a linearizable write being made again when the ring changes, after another one was seen",
        "unit/test_reruns.py::test_keys_in_doubt_are_not_written_again_where_nothing_may_be_written_twice",
        "a write has to be in doubt when the ring changes, and to be read and overwritten before it is made again",
    ),
    "asking under one ring alone": (
        "completing under a ring that is not in force any more",
        "unit/test_completing.py::test_nothing_is_declared_under_another_ring_than_it_was_asked_under",
        "it takes a change of the ring within the milliseconds of a round",
    ),
    "doubting after missed ring states": (
        "a node going by what it held before others owned it",
        "unit/test_agent.py::test_who_missed_a_state_doubts_all_that_it_holds",
        "a slot has to go and to come back while its former owner is cut off",
    ),
    "catching up": (
        "fewer owners than before of which none need know of a write",
        "unit/test_completing.py::test_owners_catch_up_before_they_are_two_in_place_of_three",
        "an owner has to miss a write just before another one goes, and that one to be heard by nobody else",
    ),
    "waiting for the next ring": (
        "the next ring taking over before its members know what the old one knew",
        "unit/test_changes.py::test_a_newcomer_is_taken_over_only_once_all_have_completed_their_slots",
        "those that stay know enough, and newcomers do not count: what several changes in a row may cost is misses",
    ),
    "a majority for the ring": (
        "two rings being in force that know nothing of each other",
        "unit/test_register.py::test_without_majorities_two_states_are_found",
        "of two states of one epoch all members soon hold the same one: nobody looks at what they held before",
    ),
    "members that forgot do not vote": (
        "a member that forgot what it promised voting again at once",
        "unit/test_register.py::test_with_members_that_vote_although_they_forgot_two_states_are_found",
        "one steward proposes nearly always; in the unit test all do",
    ),
    "promises that name lives": (
        "the promise of a life that has ended being counted",
        "unit/test_register.py::test_a_promise_of_a_life_that_is_over_counts_no_more_once_the_next_life_was_witnessed",
        "as above",
    ),
    "finishing what was accepted": (
        "another ring state being agreed on beside one that was agreed on before",
        "unit/test_register.py::test_without_proposing_again_what_was_accepted_two_states_are_found",
        "as above",
    ),
    "stepping in": (
        "a change that nobody sees through while its first member is away",
        "unit/test_changes.py::test_a_change_is_seen_through_though_the_first_member_hangs_and_nobody_notices",
        "in the end all members are there",
    ),
    "giving up newcomers": (
        "a change that waits for ever for a newcomer that died",
        "unit/test_changes.py::test_a_newcomer_that_dies_half_way_is_given_up",
        "in the end it is started again",
    ),
    "one vote": (
        "two clusters being founded by nodes that were started together",
        "unit/test_agent.py::test_a_vote_is_for_one_founder_only",
        "all that are simulated expect as many as there are",
    ),
    "a majority to start over": (
        "owners that were cut off giving up what the others still know",
        "unit/test_completing.py::test_a_majority_of_the_owners_is_needed_to_start_over",
        "what is lost is a miss, and those who started over alone vouch for nothing",
    ),
    "closing connections after a stall": (
        "requests being carried out that were given up long ago",
        f"integration/test_server.py::{CLOSED}",
        "versions tell that they are old; only lifetimes would begin too late",
    ),
    "closing connections that do not answer": (
        "waiting on a connection that leads nowhere",
        "integration/test_trouble_noticed.py::test_a_lost_node_costs_a_client_one_timeout_at_most[async-paused]",
        "the kernel of a host that is up again resets it",
    ),
    "staying with a cluster": (
        "a client leaving its cluster for that of one stray node",
        "unit/test_ops_topology.py::test_one_node_that_repeats_itself_is_no_majority",
        "there are no stray nodes",
    ),
    "refusing clocks that are far ahead": (
        "versions that everybody else has to climb over",
        "unit/test_ops_write.py::test_a_client_whose_clock_is_an_hour_ahead_is_told_so",
        "no harm but a second round, and that slots are started over below them",
    ),
    "own copies": (
        "callers of one computation changing each other's value",
        "unit/test_loading.py::test_the_one_who_computed_has_the_object_itself_and_others_a_copy_each",
        "the callers that are simulated change no value that they got",
    ),
    "detaching computations": (
        "a caller getting what was computed before its own client changed the key",
        "integration/test_collapsing.py::test_a_delete_detaches_a_computation_of_tasks",
        "the rules say nothing of what callers of one client share",
    ),
}
"""Against what, the test, and why not here."""
