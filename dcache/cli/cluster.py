"""`dcache ping`, `members`, `ring`, `stats`: the nodes, how they are, and who holds what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import click
from rich.text import Text

from dcache.cli.changes import percent
from dcache.cli.output import Front, key_bytes, lifetime, size, table, written
from dcache.membership import Member, MemberTable
from dcache.ops import cluster
from dcache.ops.cluster import Holding
from dcache.ops.survey import Survey
from dcache.ring import SLOTS


@click.command()
@click.pass_obj
def ping(front: Front) -> None:
    """The round trip to every member; exit with 3 if one does not answer."""
    front.client.ping()  # connects, so that the next one measures the round trip alone
    seconds = front.client.ping()
    everybody = [member.name for member in front.client.members()]
    rows = [(name, _milliseconds(seconds[name]) if name in seconds else _alarm("no answer")) for name in everybody]
    front.show({name: seconds.get(name) for name in everybody}, table(("member", "round trip"), rows))
    silent = [name for name in everybody if name not in seconds]
    if silent:
        if not front.json:
            click.echo(f"dcache: {len(silent)} of {len(everybody)} members do not answer", err=True)
        click.get_current_context().exit(3)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def _alarm(text: str) -> Text:
    return Text(text, style="bold red")


@click.command()
@click.pass_obj
def members(front: Front) -> None:
    """The members of the cluster, who is up, how many of their slots they have completed; and whether the ring is
    changing."""
    seen = front.survey()
    rows = [_member(row, seen) for _, row in sorted(seen.table.members.items())]
    columns = ("member", "address", "zone", "weight", "health", "on the ring", "slots complete")
    state = seen.table.ring_state
    about = {
        "cluster": seen.table.settings.cluster_id,
        "epoch": state.epoch,
        "changing": seen.changing,
        "waited_for": seen.waited_for,
    }
    front.show({**about, "members": rows}, table(columns, map(_told, rows)), _change(seen))


def _member(row: Member, seen: Survey) -> dict[str, Any]:
    told = seen.stats.get(row.name, {})
    return {
        **attrs.asdict(row),
        "health": row.health.name.lower(),
        "on_ring": row.name in seen.members,
        "place": place(seen, row.name),
        "slots": told.get("slots"),
        "slots_complete": told.get("slots_complete"),
    }


def place(seen: Survey, name: str) -> str:
    """Whether a member is on the ring, now and after the change that is under way."""
    state = seen.table.ring_state
    after = seen.members if state.next is None else {node.name for node in state.next}
    if name in after:
        return "yes" if name in seen.members else "joining"
    return "leaving" if name in seen.members else "no"


def _told(row: Mapping[str, Any]) -> tuple[Any, ...]:
    health = Text("up", style="green") if row["health"] == "up" else _alarm(row["health"])
    return row["name"], row["address"], row["zone"], f"{row['weight']:g}", health, row["place"], _complete(row)


def _complete(row: Mapping[str, Any]) -> str | Text:
    owned, complete = row["slots"], row["slots_complete"]
    if owned is None or complete is None:
        return _alarm("no answer")
    told = f"{percent(complete, owned)} of {owned:,}"
    return told if complete >= owned else Text(told, style="yellow")


def _change(seen: Survey) -> Text:
    waited_for = ", ".join(seen.waited_for)
    if seen.changing:
        waits = f"; until {waited_for} has completed its slots nothing else can change" if waited_for else ""
        return Text(f"The ring is changing{waits}.", style="yellow")
    waits = f"; whoever joins or leaves has to wait for {waited_for}" if waited_for else ""
    return Text(f"The ring is not changing; it is number {seen.table.ring_state.epoch}{waits}.")


@click.command()
@click.argument("key", required=False)
@click.pass_obj
def ring(front: Front, key: str | None) -> None:
    """Who owns what share of the slots; with KEY, who holds it (exit with 1 if nobody does).

    The first owner of a slot comes first in its preference list; all owners hold its keys.
    """
    if key is None:
        front.client.members()  # so that the table is known
        _show_shares(front, _table(front))
    else:
        held = front.client.engine.run(front.client, cluster.holders, key_bytes(key))
        _show_holders(front, key, held)


def _table(front: Front) -> MemberTable:
    known = front.client.session.topology.table
    assert known is not None  # some operation was run, so the cluster was found
    return known


def _show_shares(front: Front, known: MemberTable) -> None:
    settings = known.settings
    first, among = known.ring.shares(1), known.ring.shares(settings.replicas)
    names = sorted(first)
    result = {
        **attrs.asdict(settings),
        "slots": SLOTS,
        "fingerprint": known.fingerprint.hex(),
        "nodes": {name: {"first_owner": first[name], "owner": among[name]} for name in names},
    }
    rows = [(name, f"{first[name]:.1%}", f"{among[name]:.1%}") for name in names]
    about = f"{SLOTS:,} slots, {settings.replicas} replicas, {settings.vnodes} points per unit of weight"
    front.show(result, table(("node", "first owner of", "owner of"), rows), about)


def _show_holders(front: Front, key: str, held: Mapping[str, Holding]) -> None:
    slot = _table(front).ring.slot(front.client.flight_key(key_bytes(key)))
    newest = max((one.version for one in held.values() if one.held), default=None)
    owners = [_owner(name, one) for name, one in held.items()]
    rows = [(name, *_cells(one, newest)) for name, one in held.items()]
    shown = table(("owner", "holds it", "written (UTC)", "lifetime", "version"), rows)
    reasons = [f"{name}: {one.error}" for name, one in held.items() if one.error is not None]
    front.show({"key": key, "slot": slot, "owners": owners}, f"slot {slot}", shown, *reasons)
    if newest is None:
        click.get_current_context().exit(1)


def _owner(name: str, one: Holding) -> dict[str, Any]:
    if one.error is not None:
        return {"node": name, "error": one.error}
    about: dict[str, Any] = {"node": name, "held": one.held, "complete": one.complete}
    if one.held:
        return {**about, "version": one.version.hex(), "ttl": one.ttl}
    return {**about, "floor": one.version.hex()}


def _cells(one: Holding, newest: bytes | None) -> tuple[str | Text, ...]:
    if one.error is not None:
        return _alarm("no answer"), "", "", ""
    doubt = "" if one.complete else ", incomplete"
    if not one.held:
        return Text(f"no{doubt}"), "", "", ""
    state = Text(f"yes{doubt}", style="green") if one.version == newest else Text(f"older{doubt}", style="yellow")
    return state, written(one.version), lifetime(one.ttl), one.version.hex()


@click.command()
@click.pass_obj
def stats(front: Front) -> None:
    """What every node holds and has done since it started."""
    nodes = front.client.stats()["nodes"]
    columns = ("node", "entries", "memory", "limit", "hits", "misses", "writes", "evicted", "expired", "up")
    front.show({"nodes": nodes}, table(columns, [(name, *_counts(about)) for name, about in nodes.items()]))


def _counts(about: Mapping[str, Any]) -> tuple[str | Text, ...]:
    if "error" in about:
        return (_alarm("no answer"), *[""] * 8)
    counted = (about[name] for name in ("hits", "misses", "writes", "evictions", "expirations"))
    memory = (size(about["bytes"]), size(about["memory_limit"]))
    return f"{about['entries']:,}", *memory, *(f"{count:,}" for count in counted), lifetime(about["uptime"])
