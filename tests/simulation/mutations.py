"""Every safeguard of dcache, and what the simulator finds without it.

Each function takes one safeguard out, by means of `put`, which is `monkeypatch.setattr`.  What stands above it says
against what the safeguard is there, and in which profile, within how many seeds from which on, its absence does harm
that is seen.  The first seed is one that sees it: on another commit it may be another one, within the number.
Safeguards whose absence a simulated cluster does not show are in `held_elsewhere`.

    python -m tests.simulation.mutations                    how many seeds each takes now
    python -m tests.simulation.mutations --rare             only those whose harm takes long to be found
    python -m tests.simulation.mutations "the fence"        one of them
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from dcache.agent import completing
from dcache.agent.repair import Repair
from dcache.client import reruns
from dcache.drivers import prompt_groups
from dcache.drivers.channel import Channel
from dcache.drivers.driver import Books
from dcache.membership import MemberTable
from dcache.node.promises import Promises
from dcache.node.server import Server
from dcache.node.service import Service
from dcache.node.store import Store
from dcache.ops import batch, cluster, compare, linearizable, mutate, prompt, prompt_many, quorum, read, write
from dcache.ops.context import Context
from dcache.ops.effects import Op, Reply
from dcache.ops.quorum import JointQuorum, Quorum, WriteRound
from dcache.ops.topology import Topology
from dcache.record import ZERO, Version, VersionClock
from dcache.testing.sim import run
from dcache.testing.sim.profiles import PROFILES
from dcache.wire import Status
from tests.simulation.special_profiles import SPECIAL

Put = Callable[[Any, str, Any], None]
TakeOut = Callable[[Put], None]


@attrs.frozen(kw_only=True)
class Mutation:
    """A safeguard that can be taken out.  `callers` are so many of each client."""

    name: str
    against: str
    take_out: TakeOut
    profile: str
    first: int
    within: int
    callers: int
    rare: bool


MUTATIONS: dict[str, Mutation] = {}


def safeguard(
    against: str, profile: str, *, within: int, first: int = 0, callers: int = 2, rare: bool = False
) -> Callable[[TakeOut], TakeOut]:
    """Put a safeguard on the list, under the name of the function that takes it out, but for its first word.

    What is `rare` is left to `nox -s simulate`.
    """

    def listed(take_out: TakeOut) -> TakeOut:
        name = take_out.__name__.partition("_")[2].replace("_", " ")
        MUTATIONS[name] = Mutation(
            name=name,
            against=against,
            take_out=take_out,
            profile=profile,
            first=first,
            within=within,
            callers=callers,
            rare=rare,
        )
        return take_out

    return listed


def found(mutation: Mutation) -> tuple[int, str] | None:
    """The first seed that shows what is wrong without the safeguard, and what that is; None if none does."""
    for seed in range(mutation.first, mutation.first + mutation.within):
        wrong = _violation(mutation, seed, mutation.take_out)
        if wrong and not _violation(mutation, seed, lambda put: None):
            return seed, wrong
    return None


def _violation(mutation: Mutation, seed: int, take_out: TakeOut) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name, profile in SPECIAL.items():
            patch.setitem(PROFILES, name, profile)
        patch.setattr(run, "CALLERS", (mutation.callers,))
        take_out(patch.setattr)
        return next(iter(run.run(mutation.profile, seed).violations), "")


# -- what nodes remember ----------------------------------------------------------------------------------------------


@safeguard("an older copy coming back where a newer one was forgotten", "evictions", within=20)
def without_floors(put: Put) -> None:
    put(Store, "raise_floor", lambda store, slot, version: None)


@safeguard(
    "a value being returned of which an owner may have forgotten a newer one",
    "forgotten decisions",
    first=19,
    within=60,
)
def without_votes_by_floor(put: Put) -> None:
    def judged(replies: Any, *, strict: bool = True) -> Any:
        def unaware(reply: Reply) -> Reply:
            complete, _, *rest = reply.result
            return reply._replace(result=(complete, ZERO, *rest)) if len(rest) == 1 else reply

        return judge([unaware(reply) for reply in replies], strict=strict)

    judge = quorum.judge
    put(quorum, "judge", judged)
    put(mutate, "judge", judged)


@safeguard("a node that lost its memory having a say in what the newest value is", "slow restarts", first=16, within=80)
def without_complete_bits_of_voters(put: Put) -> None:
    def judged(replies: Any, *, strict: bool = True) -> Any:
        return judge([reply._replace(result=(True, *reply.result[1:])) for reply in replies], strict=strict)

    judge = quorum.judge
    put(quorum, "judge", judged)
    put(mutate, "judge", judged)


@safeguard("a write resting on a node that forgets it when it completes its slots", "slow restarts", first=5, within=30)
def without_complete_bits_of_acknowledgements(put: Put) -> None:
    def counts(answer: Any, *, overtaken: bool = False) -> bool:
        return counted((True, *answer[1:]), overtaken=overtaken)

    counted = quorum.counts
    put(quorum, "counts", counts)
    put(mutate, "counts", counts)


@safeguard("being complete in slots that this node owned before, and others wrote to since", "away", within=30)
def without_losing_bits_of_slots_given_up(put: Put) -> None:
    def own(store: Store, slots: Any) -> None:
        bits = store.complete_bits
        was(store, slots)
        store.complete_bits = bits
        store._count_complete()

    was = Store.own
    put(Store, "own", own)


@safeguard("a node taking more memory than it may", "scarce", within=20)
def without_evictions(put: Put) -> None:
    put(Store, "_make_room", lambda store, cost: None)


@safeguard("values surviving a clear that was made by a writer whose clock is behind", "crashes", within=30)
def without_asking_for_the_newest_before_a_clear(put: Put) -> None:
    def clear(ctx: Context) -> Op[None]:
        yield from cluster._everywhere(ctx, "clear", (ctx.shared.clock.stamp(),), in_doubt=True)

    put(cluster, "clear", clear)


# -- reads and writes -------------------------------------------------------------------------------------------------


@safeguard(
    "a value being returned, and an older one after it, since one owner alone held it", "slow", within=80, callers=8
)
def without_writing_back(put: Put) -> None:
    def unwritten(ctx: Context, key: bytes, verdict: quorum.Verdict) -> Op[tuple[bool, bool]]:
        yield from ()
        return True, False

    def all_unwritten(ctx: Context, unsettled: Any) -> Op[dict[bytes, Any]]:
        yield from ()
        return {key: verdict.record() for key, verdict in unsettled.items()}

    put(read, "_write_back", unwritten)
    put(batch, "_write_back", all_unwritten)


@safeguard("a write that no later read need meet", "skewed", within=20)
def without_a_majority_of_acknowledgements(put: Put) -> None:
    put(Context, "writes", lambda ctx, n: 1)


@safeguard("a value being returned that a single owner vouches for", "skewed", first=7, within=30)
def without_a_majority_of_holders(put: Put) -> None:
    def quorums_of(ctx: Context, rings: Any) -> Any:
        return attrs.evolve(made(ctx, rings), hold=Quorum(1))

    made = Context._quorums_of
    put(Context, "_quorums_of", quorums_of)


@safeguard("a value being read promptly that a single owner vouches for", "skewed", first=7, within=30)
def without_agreement_of_prompt_answers(put: Put) -> None:
    def agreed(answers: Any) -> Any:
        return judged(answers[:1])

    judged = prompt.agreed
    put(prompt_groups, "agreed", agreed)
    put(prompt_many, "agreed", agreed)


@safeguard("a write being lost to an older one whose writer's clock is ahead", "skewed", within=20)
def without_taking_being_beaten_at_first_for_a_failure(put: Put) -> None:
    def attempt(quorums: Any, calls: Any, before: Any, spares: Any = ()) -> WriteRound:
        return WriteRound(calls, quorums.writes, spares=spares, overtaken=True)

    put(write, "attempt", attempt)
    put(batch, "attempt", attempt)


@safeguard("writers whose clocks are behind not being able to write", "skewed", first=16, within=20)
def without_stamping_anew(put: Put) -> None:
    put(write, "next_version", lambda ctx, rounds: None)
    put(batch, "next_version", lambda ctx, rounds: None)


@safeguard("a second attempt that is above too little taking itself to be overtaken", "skewed", within=80)
def without_hearing_a_majority_before_stamping_anew(put: Put) -> None:
    def attempt(quorums: Any, calls: Any, before: Any, spares: Any = ()) -> WriteRound:
        return WriteRound(calls, quorums.writes, spares=spares, overtaken=bool(before))

    put(write, "attempt", attempt)
    put(batch, "attempt", attempt)


@safeguard("an error that says certainly not, of a write that shows up later", "network", within=20)
def without_doubts(put: Put) -> None:
    put(WriteRound, "in_doubt", lambda round_: False)


# -- versions ---------------------------------------------------------------------------------------------------------


@safeguard("two versions being the same, both made just above a third", "skewed", within=20)
def without_fresh_writers_above(put: Put) -> None:
    def above(clock: VersionClock, version: bytes) -> Version:
        clock._other = clock._writer - 1
        return was(clock, version)

    was = VersionClock.above
    put(VersionClock, "above", above)


# -- fills and conditional changes ------------------------------------------------------------------------------------


@safeguard("a promise outliving another change of its key", "loads", within=60)
def without_changes_that_void_promises(put: Put) -> None:
    put(Promises, "void", lambda promises, key: None)


@safeguard("a delete being refused for a promise, and taken for overtaken", "decisions", within=60, callers=4)
def without_telling_promises_from_writes(put: Put) -> None:
    def barrier(store: Store, *rest: Any) -> Any:
        answer = found(store, *rest)
        return answer if answer is None else (Status.NEWER, answer[1])

    found = Store._barrier
    put(Store, "_barrier", barrier)
    put(Service, "_told_of_promises", lambda service, full, version, answer: answer)


@safeguard("a change being decided on the word of one owner", "decisions", within=20)
def without_a_majority_of_promises_to_change(put: Put) -> None:
    def quorums_of(ctx: Context, rings: Any) -> Any:
        return attrs.evolve(made(ctx, rings), majority=Quorum(1))

    made = Context._quorums_of
    put(Context, "_quorums_of", quorums_of)


@safeguard("a change that may have been made being made again", "joining decisions", first=4, within=60)
def without_giving_up_what_is_in_doubt(put: Put) -> None:
    put(reruns, "may_rerun", lambda operation, error, **more: True)


# -- rings ------------------------------------------------------------------------------------------------------------


@safeguard("those who slept through a change of the ring reading and writing past it", "joining", first=12, within=60)
def without_the_fence(put: Put) -> None:
    put(Server, "push", lambda server, method, params: None)  # that nodes tell of a change at once is no safeguard
    put(Books, "news", lambda books, node, digest: None)
    put(Service, "_fence", lambda service, fingerprint: None)


@safeguard(
    "those who know the next ring, and those who know the old one, not meeting",
    "moving",
    first=8,
    within=200,
    callers=4,
    rare=True,
)
def without_quorums_on_the_next_ring(put: Put) -> None:
    def lacking(quorum: JointQuorum, counted: Any, *more: Any) -> int:
        nodes = {each.node for some in (counted, *more) for each in some}
        members, size = quorum.rings[0]
        return max(0, size - len(members & nodes))

    put(JointQuorum, "lacking", lacking)


@safeguard("a false rumour about a member staying", "changes", first=20, within=30)
def without_refutation(put: Put) -> None:
    put(MemberTable, "refuting", lambda table, me: (table, me))


# -- completing and repair --------------------------------------------------------------------------------------------


@safeguard("completing a slot with others of whom none need know of a write", "forgetful", first=18, within=100)
def without_enough_others_to_complete_a_slot(put: Put) -> None:
    put(completing, "enough", lambda n: 1)


@safeguard("taking what another owner holds though a newer value was forgotten", "forgetful", first=18, within=100)
def without_votes_when_a_slot_is_completed(put: Put) -> None:
    put(compare.Inventory, "votes", lambda inventory, key, version: True)


@safeguard(
    "old values and promises counting in a slot that was started over",
    "restarts",
    first=16,
    within=60,
)
def without_raising_the_floor_when_starting_over(put: Put) -> None:
    put(Store, "start_over", lambda store, slots, floor: store.complete(slots))


@safeguard("owners differing for ever", "network", within=80)
def without_repair(put: Put) -> None:
    def nothing(repair: Repair, table: MemberTable) -> Op[None]:
        yield from ()

    put(Repair, "_round", nothing)


# -- processes and connections ----------------------------------------------------------------------------------------


@safeguard("a caller getting the reply to a call that was given up", "network", within=20)
def without_ids_in_replies(put: Put) -> None:
    def reply(channel: Channel, message: tuple[Any, ...]) -> None:
        kind, message_id, error, result = message
        wanted = (id for id, (_, waiter, _) in channel._waiting.items() if not getattr(waiter, "closed", False))
        matched(channel, (kind, next(wanted, message_id), error, result))

    matched = Channel._reply
    put(Channel, "_reply", reply)


@safeguard("a client that stays with a cluster of which no majority is left", "crashes", within=40)
def without_leaving_a_lost_cluster(put: Put) -> None:
    put(Topology, "foreign", lambda topology, node, cluster_id: False)


@safeguard("a write below one that was acknowledged before", "linearizable", within=30)
def without_asking_for_the_top(put: Put) -> None:
    put(linearizable, "version_above", lambda ctx, asked: ctx.shared.clock.stamp())


@safeguard("asking for the top where nobody knows it", "linearizable", first=17, within=80)
def without_a_majority_of_tops(put: Put) -> None:
    def top_round(ctx: Context, key: bytes) -> Any:
        calls = [ctx.call(node, "top", key) for node in ctx.readers(key)]
        return linearizable.TopRound(calls[:1], Quorum(1), calls[1:])

    put(linearizable, "top_round", top_round)


@safeguard("a computation being done as often as it is asked for", "network", within=60)
def without_collapsing(put: Put) -> None:
    async def alone(flights: Any, key: bytes, work: Any) -> Any:
        return await work(), True

    from dcache.client import async_engine

    put(async_engine, "run_async", alone)


# -- as a program ------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Look for the harm of each safeguard's absence; 1 if that of any is not found."""
    rare = "--rare" in arguments
    names = [name for name in arguments if name in MUTATIONS] or [
        name for name, mutation in MUTATIONS.items() if mutation.rare or not rare
    ]
    missing = 0
    for name in names:
        mutation, begun = MUTATIONS[name], time.process_time()
        seen = found(mutation)
        missing += seen is None
        what = f"not within {mutation.within} seeds" if seen is None else f"seed {seen[0]}, {seen[1]:.100}"
        took = f"{time.process_time() - begun:.1f} s"
        sys.stdout.write(f"{name} [{mutation.profile} from {mutation.first}] {took}: {what}\n")
        sys.stdout.flush()
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
