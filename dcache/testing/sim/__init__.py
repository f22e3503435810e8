"""Whole clusters on simulated machines: virtual time, a network that misbehaves, one seed.

`Simulation` is the machines, their clocks and the network between them; `Cluster` puts nodes and clients of dcache onto
it.  `dcache.testing.sim.run` makes the runs of `dcache-sim`.
"""

from dcache.testing.sim.cluster import Cluster, few_slots
from dcache.testing.sim.simulation import Clock, Host, Process, Simulation

__all__ = ["Clock", "Cluster", "Host", "Process", "Simulation", "few_slots"]
