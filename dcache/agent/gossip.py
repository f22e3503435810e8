"""How members come to hold the same table: each, every second, compares with one other, digests first.

A change reaches n members in some log2(n) rounds (Demers et al., "Epidemic Algorithms for Replicated Database
Maintenance", 1987); in between nothing but digests travels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from dcache.agent.agent import Agent
from dcache.errors import ClusterMismatch, ProtocolError
from dcache.membership import MemberTable
from dcache.ops.effects import Call, FirstOf, Op, Sleep

log = logging.getLogger("dcache.agent")

INTERVAL = 1.0


def gossip(agent: Agent, random: Callable[[], float]) -> Op[None]:
    """For ever: compare tables with a random other member, then sleep, some 0.8 to 1.2 seconds."""
    while True:
        yield Sleep(INTERVAL * (0.8 + 0.4 * random()))
        yield from compare(agent, random)


def compare(agent: Agent, random: Callable[[], float]) -> Op[None]:
    """Exchange tables with one other, if they differ."""
    table = agent.table
    assert table is not None
    others = sorted(name for name in table.members if name != agent.me.name)
    if not others:
        return
    other = others[int(random() * len(others))]
    round_ = FirstOf([Call(other, "exchange", (table.digest,))])
    yield round_
    if not round_.replies or round_.replies[0].result is None:
        return
    try:
        theirs = MemberTable.from_wire(round_.replies[0].result)
        agent.adopt(theirs)
    except (ProtocolError, ClusterMismatch) as error:
        log.warning("what %s holds for the table is none of this cluster: %s", other, error)
        return
    if agent.table is not None and agent.table.digest != theirs.digest:
        yield FirstOf([Call(other, "offer", (agent.table.to_wire(),))])
