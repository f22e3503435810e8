"""`dcache leave`, `forget`: members that go, for good."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from dcache.agent.wishes import RENEW_EVERY
from dcache.cli.output import Front
from dcache.errors import DcacheError, NodeError, QuorumError
from dcache.ops.quorum import majority
from dcache.ops.survey import Survey, going, off_the_ring, wish

LOOK_EVERY = 0.2
PATIENCE = 600.0


class NotPossible(DcacheError):
    """What was asked for makes no sense in this cluster; the message says why."""


class NotDone(DcacheError):
    """It took too long; the message says what it was waiting for."""


Command = Callable[..., Any]


def with_timeout(what: str) -> Callable[[Command], Command]:
    """The option of a command that may take long; `what` says of what it is the limit."""
    seconds = click.FloatRange(min=0, min_open=True)
    return click.option("--timeout", type=seconds, default=PATIENCE, show_default=True, metavar="SECONDS", help=what)


def waiting(command: Command) -> Command:
    """The options of a command that waits for a change of the ring."""
    no_wait = click.option("--no-wait", is_flag=True, help="End as soon as it has begun.")
    return with_timeout("How long to wait for it.")(no_wait(command))


@click.command()
@click.argument("name")
@waiting
@click.pass_obj
def leave(front: Front, name: str, timeout: float, no_wait: bool) -> None:
    """Have the member NAME leave: it hands over what it owns, then ends."""
    seen = front.survey()
    _check_known(seen, [name])
    if seen.members == {name}:
        raise NotPossible(f"{name} is the only member; stop it, and the cluster is no more")
    if name not in seen.stats:
        raise NotPossible(f"{name} does not answer; if it is gone for good: dcache forget {name}")
    after = _Change(front, "leave", [name], name).see_through(timeout, wait=not no_wait)
    _show(front, "left", "has left", "is leaving", [name], after)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@waiting
@click.pass_obj
def forget(front: Front, names: tuple[str, ...], timeout: float, no_wait: bool) -> None:
    """Take dead members off the ring.

    They must be down, and a majority of all members must be up.  Should one come back, it joins anew, empty.
    """
    names = tuple(dict.fromkeys(names))
    seen = front.survey()
    _check_known(seen, names)
    alive = [name for name in names if name in seen.stats]
    if alive:
        raise NotPossible(f"{', '.join(alive)} is up: use dcache leave, or stop it first")
    after = _Change(front, "forget", names, list(names)).see_through(timeout, wait=not no_wait)
    _show(front, "forgotten", "is forgotten", "is being forgotten", names, after)


def _check_known(seen: Survey, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in seen.table.members]
    if unknown:
        known = ", ".join(sorted(seen.table.members))
        raise NotPossible(f"no member is called {', '.join(unknown)}; the members are {known}")


def _show(front: Front, key: str, done: str, under_way: str, names: Sequence[str], after: Survey) -> None:
    finished = off_the_ring(after.table, names)
    left = sorted(after.members - set(names))
    result = {key: list(names), "done": finished, "epoch": after.table.ring_state.epoch, "members": left}
    told = [f"{name} {done if finished else under_way}" for name in names]
    front.show(result, *told, f"{len(left)} members: {', '.join(left)}")


class _Change:
    """A wish that `names` go, said until it is fulfilled."""

    def __init__(self, front: Front, method: str, names: Sequence[str], wanted: str | list[str]) -> None:
        self._front, self._method, self._names, self._wanted = front, method, names, wanted
        self._said = -RENEW_EVERY
        self._refused: NodeError | None = None

    def see_through(self, timeout: float, *, wait: bool) -> Survey:
        """Until it is done or, not to `wait`, certain to be."""
        enough = off_the_ring if wait else going
        deadline = time.monotonic() + timeout
        with told_on(self._front) as tell:
            while not enough((seen := self._front.survey()).table, self._names):
                self._check_majority(seen)
                if self._refused is not None:  # and not because it is done by now
                    raise NotPossible(str(self._refused.detail or self._refused))
                if time.monotonic() >= deadline:
                    raise NotDone(f"{self._method}: not done within {timeout:g} s: {self._standing(seen)}")
                self._say(seen)
                tell(self._standing(seen))
                time.sleep(LOOK_EVERY)
        return seen

    def _check_majority(self, seen: Survey) -> None:
        if not seen.enough():
            silent = dict.fromkeys(sorted(seen.members - set(seen.stats)), "no answer")
            needed = majority(len(seen.members))
            got = len(seen.members) - len(silent)
            what = f"{self._method}: a majority of members must agree"
            raise QuorumError(what, needed=needed, got=got, reasons=silent, in_doubt=False)

    def _say(self, seen: Survey) -> None:
        now = time.monotonic()
        if now - self._said < RENEW_EVERY or not self._ready(seen):
            return
        self._said = now
        try:
            self._front.client.engine.run(self._front.client, wish, self._method, self._wanted)
        except NodeError as error:
            self._refused = error

    def _ready(self, seen: Survey) -> bool:
        """Whether the members can be asked: nobody is forgotten who is not known to be down."""
        present = seen.table.members.keys() & set(self._names)
        return self._method != "forget" or present <= seen.table.down

    def _standing(self, seen: Survey) -> str:
        if not self._ready(seen):
            return "not yet known to be down"
        if not seen.changing:
            return "the members are agreeing on it"
        coming = {place.name for place in seen.table.ring_state.next or ()}
        if coming & set(self._names):
            return "another change of the ring is under way"
        return f"the others complete their slots, {share(seen)} done"


def share(seen: Survey) -> str:
    """How many of their slots all nodes have completed, as text."""
    owned = sum(about.get("slots", 0) for about in seen.stats.values())
    complete = sum(about.get("slots_complete", 0) for about in seen.stats.values())
    return percent(complete, owned)


def percent(part: int, whole: int) -> str:
    """Never "100 %" for less than all."""
    return "100 %" if part >= whole else f"{min(99.9, part / whole * 100):.1f} %"


@contextmanager
def told_on(front: Front) -> Iterator[Callable[[str], None]]:
    """A line on a terminal that tells what stands, nothing elsewhere."""
    if not front.console.is_terminal:
        yield lambda text: None
        return
    with front.console.status("") as status:
        yield status.update
