"""How nodes that were started together become one cluster.

Every node introduces itself to the addresses it was given.  Whoever is of a cluster already answers with its table,
and that is that.  Otherwise, once exactly as many know of each other as each was told to expect, the one with the
smallest name asks all others for their vote, and with the votes of all of them founds the cluster.  A vote is for one
founder and one set of nodes, so no two clusters can come of it; a founder who dies with the votes is followed by the
same one restarted, or by the operator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import attrs

from dcache.agent.agent import Agent, CannotJoin, member_from_wire, member_to_wire, terms_from_wire
from dcache.errors import ProtocolError
from dcache.membership import MemberTable
from dcache.ops.effects import Call, Gather, Op, Sleep
from dcache.record import Version

log = logging.getLogger("dcache.agent")

PAUSE = 0.2
TELL_EVERY = 50  # pauses between two lines of log about waiting


def form(agent: Agent, peers: Sequence[str], cluster_id: str, stamp: Callable[[], Version]) -> Op[None]:
    """Until this node is of a cluster; `CannotJoin` if it finds one that it cannot be of."""
    waits = 0
    while True:
        yield from _introduce(agent, peers)
        if agent.trouble is not None:
            raise agent.trouble
        if agent.table is not None:
            return
        if _may_found(agent, peers) and (yield from _elected(agent)):
            yield from _announce(agent, agent.found(cluster_id, stamp()))
            return
        if waits % TELL_EVERY == 0:
            _tell(agent)
        waits += 1
        yield Sleep(PAUSE)


def _may_found(agent: Agent, peers: Sequence[str]) -> bool:
    """A node alone founds a cluster only if it was not sent to others: they may be of one that it cannot see now."""
    alone = agent.terms.expect == 1
    return agent.may_found() and not (alone and set(peers) - agent.own_addresses)


def _tell(agent: Agent) -> None:
    names = [name for name, _ in agent.ballot()]
    level = logging.ERROR if len(names) > agent.terms.expect else logging.INFO
    log.log(
        level, "waiting for a cluster of %d nodes; here are %d: %s", agent.terms.expect, len(names), ", ".join(names)
    )


def _introduce(agent: Agent, peers: Sequence[str]) -> Op[None]:
    me, terms = member_to_wire(agent.me), agent.terms
    round_ = Gather([Call(peer, "candidate", (me, attrs.astuple(terms))) for peer in peers])
    yield round_
    for failure in round_.failures:
        agent.gone(failure.node)
    for reply in round_.replies:
        try:
            data, their_terms, table = reply.result
            row = member_from_wire(data)
            if agent.table is not None:
                return
            if table is None:
                agent.heard(row, terms_from_wire(their_terms), at=reply.node)
            elif not agent.superseded(row):  # else this node may have voted, for a cluster that the answer knows not of
                agent.adopt(MemberTable.from_wire(table))
        except (TypeError, ValueError, ProtocolError) as error:
            log.error("%s is no dcache node of this kind: %s", reply.node, error)
        except CannotJoin:
            return


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
