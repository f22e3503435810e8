"""How nodes that were started together become one cluster.

Every node introduces itself to the addresses it was given.  Whoever is of a cluster already answers with its table,
and that is that: this node is a member that returns, or will ask to be let in.  Otherwise, once exactly as many know of
each other as each was told to expect, the one with the smallest name asks all others for their vote, and with the votes
of all of them founds the cluster.  A vote is for one founder and one set of nodes, so no two clusters can come of it; a
founder who dies with the votes is followed by the same one restarted, or by the operator.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from dcache.agent.agent import Agent
from dcache.agent.terms import CannotJoin, terms_from_wire
from dcache.agent.wishes import name_taken
from dcache.errors import ClusterMismatch, NodeError, ProtocolError
from dcache.membership import Member, MemberTable, member_from_wire, member_to_wire
from dcache.ops.effects import Call, Gather, Op, Sleep

log = logging.getLogger("dcache.agent")

PAUSE = 0.2
TELL_EVERY = 50  # pauses between two lines of log about waiting


def form(agent: Agent, peers: Sequence[str], cluster_id: str, patience: float = 0.0) -> Op[None]:
    """Until this node is of a cluster, on its ring or about to ask to be let in; `CannotJoin` if it finds one that it
    cannot be of.

    A node waits for `patience` seconds before it founds a cluster: if it is a member of one that is there, whose other
    members its command line does not name, it is called by them, and asks them.  So nodes that founded a cluster and
    are started again, all at once, find what has become of it.
    """
    waits, agent.peers = 0, peers
    while True:
        asked = [*peers, *(address for address in sorted(agent.called_by) if address not in peers)]
        silent = yield from _introduce(agent, asked)
        if agent.trouble is not None:
            raise agent.trouble
        if agent.table is not None:
            return
        waited = waits * PAUSE >= patience
        if waited and _may_found(agent, asked) and (yield from _elected(agent)):
            yield from _announce(agent, agent.found(cluster_id))
            return
        if waits % TELL_EVERY == 0 and (waited or asked):
            _tell(agent, silent)
        waits += 1
        yield Sleep(PAUSE)


def _may_found(agent: Agent, peers: Sequence[str]) -> bool:
    """A node alone founds a cluster only if it was not sent to others: they may be of one that it cannot see now."""
    alone = agent.terms.expect == 1
    return agent.may_found() and not (alone and set(peers) - agent.own_addresses)


def _tell(agent: Agent, silent: Mapping[str, str]) -> None:
    """Say what this node waits for, and who is `silent` and why."""
    names, wanted = [name for name, _ in agent.ballot()], agent.terms.expect
    told = f"waiting for a cluster of {wanted} nodes; here are {len(names)}: {', '.join(names)}"
    if wanted == 1:
        told = "waiting for a member of the cluster to join"
    others = "".join(
        f"; {name} waits for {f'a cluster of {expect} nodes' if expect > 1 else 'one to join'}"
        for name, expect in sorted(agent.unlike.items())
    )
    reasons = "".join(f"; no answer from {address} ({why})" for address, why in silent.items())
    log.log(logging.ERROR if len(names) > wanted else logging.INFO, "%s%s%s", told, others, reasons)


def _introduce(agent: Agent, peers: Sequence[str]) -> Op[dict[str, str]]:
    """Introduce this node to others; those that did not answer, and why."""
    round_ = Gather([_introduction(agent, peer) for peer in peers])
    yield round_
    for failure in round_.failures:
        agent.gone(failure.node)
        if isinstance(failure.error, ProtocolError | NodeError | ClusterMismatch):
            agent.tell_once("%s is no dcache node of this kind: %s", failure.node, str(failure.error))
    for reply in round_.replies:
        try:
            data, their_terms, wire = reply.result
            row = member_from_wire(data)
            if agent.table is not None:
                break
            if wire is None:
                agent.heard(row, terms_from_wire(their_terms), at=reply.node)
            elif not agent.superseded(row):  # else this node may have voted, for a cluster that the answer knows not of
                yield from _enter(agent, row, MemberTable.from_wire(wire))
        except (TypeError, ValueError, ProtocolError) as error:
            agent.tell_once("%s is no dcache node of this kind: %s", reply.node, str(error))
        except CannotJoin:
            break
    return {failure.node: str(failure.error) or type(failure.error).__name__ for failure in round_.failures}


def _introduction(agent: Agent, address: str) -> Call:
    return Call(address, "candidate", (member_to_wire(agent.me), attrs.astuple(agent.terms)))


def _enter(agent: Agent, of: Member, table: MemberTable) -> Op[None]:
    """Take the table that the member `of` answered with, unless a node of this one's name is alive elsewhere."""
    former = table.members.get(agent.me.name)
    if former is not None and former.boot_id != agent.me.boot_id and former.address not in agent.own_addresses:
        round_ = Gather([_introduction(agent, former.address)])
        yield round_
        if any(_is_namesake(reply.result, agent.me) for reply in round_.replies):
            agent.trouble = CannotJoin(name_taken(former))
            raise agent.trouble
    if agent.table is None and not agent.superseded(of):
        agent.adopt(table)


def _is_namesake(answer: Any, me: Member) -> bool:
    """Whether who introduced itself is another process of the same name."""
    data, _, _ = answer
    row = member_from_wire(data)
    return row.name == me.name and row.boot_id != me.boot_id


def _elected(agent: Agent) -> Op[bool]:
    ballot = agent.ballot()
    if not agent.vote(ballot):
        return False
    round_ = Gather([Call(row.address, "vote", (ballot,)) for row in agent.candidates.values()])
    yield round_
    elected = len(round_.replies) == len(round_.calls) and all(reply.result is True for reply in round_.replies)
    # Somebody may have come, or started anew, while the votes came in; and a table may have.
    return elected and agent.table is None and agent.ballot() == ballot


def _announce(agent: Agent, table: MemberTable) -> Op[None]:
    others = [row.address for row in table.members.values() if row.name != agent.me.name]
    yield Gather([Call(address, "offer", (table.to_wire(),)) for address in others])
