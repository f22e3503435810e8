"""What a node's operator asked for, which is to agree with the cluster that the node is of."""

from __future__ import annotations

from typing import Any

import attrs

from dcache.membership import Settings, checked


class CannotJoin(Exception):
    """This node cannot be of the cluster it was sent to; the message says what to change."""


@attrs.frozen
class Terms:
    """All that found a cluster together must agree in them; who joins one, in all but `expect`."""

    replicas: int = 3
    vnodes: int = 150
    ring_seed: int = 0
    expect: int = 1

    def differ_from(self, settings: Settings) -> str | None:
        """What is wrong with them for a node of the cluster with these settings, if something is."""
        for name in ("replicas", "vnodes", "ring_seed"):
            theirs, mine = getattr(settings, name), getattr(self, name)
            if theirs != mine:
                return (
                    f"cluster {settings.cluster_id} has {name} {theirs}, this node was started with {mine}: start it "
                    f"with the cluster's"
                )
        return None


def terms_from_wire(data: Any) -> Terms:
    """`ValueError` or `TypeError` for what are no terms."""
    return checked(Terms(*data))
