"""What is asked of a cache, and workloads that were published.

**YCSB.**  Cooper, Silberstein, Tam, Ramakrishnan, Sears: Benchmarking Cloud Serving Systems with YCSB, SoCC 2010, and
the workload files of its program: records of ten fields of 100 bytes, Zipf's law with the constant 0.99.  Approximated:
a record is one value of 1,000 bytes; keys are 23 bytes (`user` and a number of 19 digits there).  E, which scans
ranges, is left out, because a cache has no order.  The number of keys is ours.  In D the law holds for the newest keys,
as many as there were at the start.

**Twitter.**  Yang, Yue, Rashmi: A large scale analysis of hundreds of in-memory cache clusters at Twitter, OSDI 2020.
The figures are those that its authors publish for each of 54 clusters: github.com/twitter/cache-trace, stat/2020Mar.md
(CC-BY 4.0), whose README recommends cluster 52 for studying miss ratios and cluster 37 for many writes.  Approximated:
sizes are the means that are given, alike for all; the share of requests for keys that are asked for once is the share
of such keys ("one-hit wonders") over the mean number of requests per key; get and gets are reads, all else are writes;
keys that a read misses are stored, on top of the writes of the mix.  The number of keys is ours.

**Facebook.**  Atikoglu, Xu, Frachtenberg, Jiang, Paleczny: Workload Analysis of a Large-Scale Key-Value Store,
SIGMETRICS 2012: thirty reads to a write; for the pool ETC the model of key sizes (generalized extreme value) and value
sizes (a table up to 14 bytes, then generalized Pareto), which are in the program `mutilate` too.  Approximated: the
tail is taken to begin at 15 bytes; the paper gives no exponent, but says that half of ETC's keys make 1 % of the
requests, and SKEW_ETC is the one for which that is so with the number of keys here.  It gives neither lifetimes nor
keys that are asked for once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from dcache.testing.load.sizes import Fixed, GeneralizedExtremeValue, GeneralizedPareto, Sizes, Table

Change = Literal["write", "insert", "update"]
Distribution = Literal["uniform", "zipf", "latest"]

KEY_SIZES, VALUE_SIZES = Fixed(16), Fixed(100)
MINUTE, HOUR, DAY = 60, 3600, 86_400


@attrs.frozen(kw_only=True)
class Workload:
    """Shares are from 0 to 1.

    `reads` of the operations are reads, the others all of one kind: `write` stores a key that is chosen as for a read,
    `insert` stores a new one, `update` reads a key and then stores it.  `distribution` says how often which key is
    chosen: `zipf` and `latest` with the exponent `skew`, `latest` by age.  Of all choices `once` are keys that are
    never chosen again.  `lifetimes` are pairs of seconds (None: no expiry) and how often they are given.  With `fill`,
    a read that misses is followed by storing the key.
    """

    keys: int = 10_000
    key_sizes: Sizes = KEY_SIZES
    value_sizes: Sizes = VALUE_SIZES
    reads: float = 0.9
    change: Change = "write"
    distribution: Distribution = "uniform"
    skew: float = 0.99
    once: float = 0.0
    lifetimes: tuple[tuple[float | None, float], ...] = ((None, 1.0),)
    fill: bool = False


def _ycsb(reads: float, change: Change = "write", distribution: Distribution = "zipf") -> Workload:
    return Workload(
        keys=100_000,
        key_sizes=Fixed(23),
        value_sizes=Fixed(1000),
        reads=reads,
        change=change,
        distribution=distribution,
        skew=0.99,
    )


def _twitter(
    reads: float, skew: float, sizes: tuple[int, int], once: float, lifetimes: Mapping[int, float], keys: int
) -> Workload:
    return Workload(
        keys=keys,
        key_sizes=Fixed(sizes[0]),
        value_sizes=Fixed(sizes[1]),
        reads=reads,
        distribution="zipf",
        skew=skew,
        once=once,
        lifetimes=tuple(lifetimes.items()),
        fill=True,
    )


ETC_KEY_SIZES = GeneralizedExtremeValue(30.7984, 8.20449, 0.078688)
ETC_SMALL = dict(
    enumerate(
        [
            *(0.00536, 0.00047, 0.17820, 0.09239, 0.00018, 0.02740, 0.00065, 0.00606),
            *(0.00023, 0.00837, 0.00837, 0.08989, 0.00092, 0.00326, 0.01980),
        ]
    )
)
ETC_VALUE_SIZES = Table(ETC_SMALL, GeneralizedPareto(15, 214.476, 0.348238))
ETC_KEYS = 100_000
SKEW_ETC = 1.2468

PRESETS: Mapping[str, Workload] = {
    "ycsb-a": _ycsb(0.5),
    "ycsb-b": _ycsb(0.95),
    "ycsb-c": _ycsb(1.0),
    "ycsb-d": _ycsb(0.95, "insert", "latest"),
    "ycsb-f": _ycsb(0.5, "update"),
    "twitter-storage": _twitter(
        0.93 / 0.99, 1.2117, (20, 273), 0.1936 / 32.6, {DAY: 0.65, 14 * DAY: 0.27, 12 * HOUR: 0.07}, 100_000
    ),
    "twitter-computation": _twitter(
        *(0.93, 1.1004, (67, 2439), 0.2933 / 26.5),
        {MINUTE: 0.39, 300: 0.24, HOUR: 0.13, 600: 0.12, 4 * HOUR: 0.09, DAY: 0.03},
        50_000,
    ),
    "twitter-transient": _twitter(0.93 / 0.98, 1.7862, (18, 115), 0.0189 / 277.0, {HOUR: 0.99}, 100_000),
    "twitter-writes": _twitter(
        0.63, 0.4251, (72, 20_134), 0.1488 / 3.8, {20: 0.91, 300: 0.06, 2 * HOUR: 0.02, 600: 0.01}, 5_000
    ),
    "facebook-etc": Workload(
        keys=ETC_KEYS,
        key_sizes=ETC_KEY_SIZES,
        value_sizes=ETC_VALUE_SIZES,
        reads=30 / 31,
        distribution="zipf",
        skew=SKEW_ETC,
        fill=True,
    ),
}
"""By name.  `twitter-storage` is cluster 52, `-computation` 4, `-transient` 16 and `-writes` 37."""
