"""Who owns what: even shares, small changes, and placement that every client works out alike."""

from __future__ import annotations

import itertools
import math
import random
import sys
import timeit
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import attrs
import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.ring import MAX_VNODES, MAX_WEIGHT, SLOTS, HashRing, RingNode, slot_of

names = st.text(min_size=1, max_size=8)
weights = st.floats(0.1, 4.0)
few = st.sampled_from(
    ["", "x", "y", "z"]
)  # zones and hosts that several nodes share, some with the name of another kind
ring_nodes = st.builds(RingNode, names, weights, few, few)
clusters = st.lists(ring_nodes, min_size=1, max_size=9, unique_by=lambda node: node.name)
rings = st.builds(HashRing, clusters, vnodes=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
counts = st.integers(1, 5)

COLLIDING = "node-53119", "node-70603"
"""Two names whose first points have the same 32-bit hash under seed 0."""

PLACED = (
    (8, 2342762, "alpha"),
    (1712, 448996093, "beta"),
    (5653, 1482156367, "gamma"),
    (13311, 3489454836, "beta"),
    (14619, 3832439516, "alpha"),
    (16262, 4263072494, "gamma"),
)
PLACED_WITH_SEED = ((7990, 2094691474, "alpha"),)


def random_keys(rng: random.Random, count: int = 10_000) -> list[bytes]:
    return [rng.randbytes(16) for _ in range(count)]


def imbalance(ring: HashRing, keys: Sequence[bytes]) -> float:
    """How far the node that is furthest from an even share of `keys` is off, as a fraction of that share."""
    owned = Counter(ring.lookup(key) for key in keys)
    even = len(keys) / len(ring)
    return max(abs(owned[node.name] - even) / even for node in ring.nodes)


def telling_slots(*rings: HashRing) -> set[int]:
    """Owners change from one slot to the next only after a point: these slots show every set of owners there is."""
    ends = {point[0] for ring in rings for point in ring.points}
    return ends | {end + 1 for end in ends if end + 1 < SLOTS} | {0, SLOTS - 1}


def full_walk(ring: HashRing, slot: int) -> tuple[str, ...]:
    """The preference list of a slot, by the rule as it is written: hash all, go round all, sort by zone and host."""
    hashes = [
        (mmh3.hash(node.name.encode() + index.to_bytes(4, "big"), ring.seed, signed=False), node)
        for node in ring.nodes
        for index in range(max(1, round(ring.vnodes * node.weight)))
    ]
    clockwise = sorted(hashes, key=lambda each: ((each[0] >> 18) < slot, each[0] >> 18, each[0], each[1].name))
    met = list(dict.fromkeys(node for _, node in clockwise))
    zones, hosts = [node.zone for node in met], [(node.zone, node.host) for node in met]

    def grade(place: int) -> int:
        if zones.index(zones[place]) == place:
            return 0
        return 1 if hosts.index(hosts[place]) == place else 2

    return tuple(met[place].name for place in sorted(range(len(met)), key=lambda place: (grade(place), place)))


# Shares


@pytest.mark.parametrize("called", ["node-{}", "node{}", "n{}", "cache-{}"])
def test_three_nodes_of_plain_names_are_within_15_percent_of_an_even_share(called: str) -> None:
    ring = HashRing(called.format(number) for number in (1, 2, 3))
    assert len(ring.points) == 3 * 150
    assert imbalance(ring, random_keys(random.Random(1))) <= 0.15


def test_nine_of_ten_random_clusters_of_three_are_within_15_percent_of_an_even_share() -> None:
    worst = []
    for seed in range(200):
        rng = random.Random(seed)
        worst.append(imbalance(HashRing(f"node-{rng.getrandbits(32):08x}" for _ in range(3)), random_keys(rng)))
    assert sorted(worst)[179] <= 0.15  # 180 of 200 are no worse than this one


def test_a_node_of_twice_the_weight_owns_twice_the_share() -> None:
    ring = HashRing([RingNode("big", 2.0), RingNode("small", 0.5), "one", "other"], vnodes=2000)
    shares = ring.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    for node in ring.nodes:
        assert shares[node.name] == pytest.approx(node.weight / 4.5, rel=0.1)


def test_a_node_of_the_smallest_weight_still_has_a_point() -> None:
    assert "tiny" in {name for _, _, name in HashRing([RingNode("tiny", 1e-9), "usual"]).points}


def test_shares_count_every_owner_of_a_slot() -> None:
    shares = HashRing(["a", "b", "c"]).shares(2)
    assert sum(shares.values()) == pytest.approx(2.0)
    assert HashRing(["a", "b", "c"]).shares(3) == {"a": 1.0, "b": 1.0, "c": 1.0}


# Change


def at_most_one_in_and_one_out(before: HashRing, after: HashRing, n: int) -> bool:
    for slot in telling_slots(before, after):
        old, new = set(before.slot_owners(slot, n)), set(after.slot_owners(slot, n))
        if len(new - old) > 1 or len(old - new) > 1:
            return False
    return True


@given(rings, ring_nodes, counts)
def test_a_node_more_changes_the_owners_of_a_slot_by_at_most_one_in_and_one_out(
    ring: HashRing, node: RingNode, n: int
) -> None:
    if node.name not in ring:
        assert at_most_one_in_and_one_out(ring, ring.add_node(node), n)


@given(rings, st.data(), counts)
def test_a_node_less_changes_the_owners_of_a_slot_by_at_most_one_in_and_one_out(
    ring: HashRing, data: st.DataObject, n: int
) -> None:
    gone = data.draw(st.sampled_from(ring.nodes)).name
    assert at_most_one_in_and_one_out(ring, ring.remove_node(gone), n)


@pytest.mark.parametrize("seed", range(5))
def test_at_most_one_in_and_one_out_in_clusters_with_many_nodes_to_a_zone_and_host(seed: int) -> None:
    rng = random.Random(seed)
    nodes = [RingNode(f"n{number}", rng.uniform(0.2, 3), rng.choice("xyz"), rng.choice("pqrs")) for number in range(16)]
    ring = HashRing(nodes[:-1], vnodes=20, seed=seed)
    for n in range(1, 6):
        assert at_most_one_in_and_one_out(ring, ring.add_node(nodes[-1]), n)
        assert at_most_one_in_and_one_out(ring, ring.remove_node(nodes[seed].name), n)


@given(rings, ring_nodes)
def test_a_node_that_joins_takes_slots_for_itself_only(ring: HashRing, node: RingNode) -> None:
    """With one owner per slot nothing moves between those that were there before."""
    if node.name not in ring:
        after = ring.add_node(node)
        for slot in telling_slots(ring, after):
            assert after.slot_owners(slot, 1) in {ring.slot_owners(slot, 1), (node.name,)}


@given(rings, ring_nodes)
def test_joining_and_leaving_again_gives_the_ring_there_was(ring: HashRing, node: RingNode) -> None:
    if node.name not in ring:
        back = ring.add_node(node).remove_node(node.name)
        assert (back, back.points) == (ring, ring.points)


def test_a_ring_itself_never_changes() -> None:
    ring = HashRing(["a", "b"])
    ring.add_node("c")
    ring.remove_node("a")
    assert [node.name for node in ring.nodes] == ["a", "b"]
    assert set(ring.owners("key", 5)) == {"a", "b"}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ring.vnodes = 3  # type: ignore[misc]


@given(clusters, st.randoms(use_true_random=False))
def test_any_order_of_joining_gives_the_same_ring(nodes: list[RingNode], rng: random.Random) -> None:
    ring = HashRing(nodes, vnodes=5)
    rng.shuffle(nodes)
    joined = HashRing(vnodes=5)
    for node in nodes:
        joined = joined.add_node(node)
    assert joined == ring
    assert hash(joined) == hash(ring)
    assert joined.points == ring.points
    assert all(joined.slot_owners(slot, 3) == ring.slot_owners(slot, 3) for slot in telling_slots(ring))


# The way round


@given(rings, counts)
def test_the_walk_that_stops_early_finds_what_a_walk_over_all_points_finds(ring: HashRing, n: int) -> None:
    slots = sorted(telling_slots(ring))
    for slot in slots[:: max(1, len(slots) // 8)]:
        assert ring.slot_owners(slot, n) == full_walk(ring, slot)[:n]


@given(rings)
def test_the_preference_list_takes_zones_first_and_then_hosts(ring: HashRing) -> None:
    zones = len({node.zone for node in ring.nodes})
    hosts = len({(node.zone, node.host) for node in ring.nodes})
    by_name = {node.name: node for node in ring.nodes}
    preferred = [by_name[name] for name in ring.slot_owners(0, len(ring))]
    assert len({node.zone for node in preferred[:zones]}) == zones
    assert len({(node.zone, node.host) for node in preferred[:hosts]}) == hosts
    assert len(set(preferred)) == len(preferred) == len(ring)


def test_copies_go_to_other_zones_and_other_hosts_while_there_are_any() -> None:
    layout = {"a1": ("a", "h1"), "a2": ("a", "h1"), "a3": ("a", "h2"), "b1": ("b", "h3"), "b2": ("b", "h3")}
    ring = HashRing(RingNode(name, zone=zone, host=host) for name, (zone, host) in layout.items())
    for slot in range(0, SLOTS, 97):
        two, three = ring.slot_owners(slot, 2), ring.slot_owners(slot, 3)
        assert {layout[name][0] for name in two} == {"a", "b"}
        assert {layout[name][1] for name in three} == {"h1", "h2", "h3"}


def test_hosts_of_one_name_in_two_zones_are_two_hosts() -> None:
    """Zones number their hosts each for itself."""
    ring = HashRing(
        [RingNode("a", zone="x", host="1"), RingNode("b", zone="y", host="1"), RingNode("c", zone="y", host="2")]
    )
    assert all(set(ring.slot_owners(slot, 3)) == {"a", "b", "c"} for slot in range(0, SLOTS, 997))
    assert all("a" in ring.slot_owners(slot, 2) for slot in range(0, SLOTS, 97))


@given(rings)
def test_after_the_last_point_comes_the_first(ring: HashRing) -> None:
    last, first = ring.points[-1], ring.points[0]
    assert ring.slot_owners(last[0], 1) == (next(name for slot, _, name in ring.points if slot == last[0]),)
    if last[0] + 1 < SLOTS:
        assert ring.slot_owners(last[0] + 1, 1) == ring.slot_owners(SLOTS - 1, 1) == (first[2],)


def test_a_slot_belongs_to_the_first_point_at_or_after_it() -> None:
    ring = HashRing(["alpha", "beta", "gamma"], vnodes=1)
    (one, _, first), (two, _, second), (three, _, third) = ring.points
    assert one < two < three < SLOTS - 1
    assert ring.slot_owners(one, 3) == ring.slot_owners(0, 3) == (first, second, third)
    assert ring.slot_owners(one + 1, 3) == ring.slot_owners(two, 3) == (second, third, first)
    assert ring.slot_owners(two + 1, 3) == ring.slot_owners(three, 3) == (third, first, second)
    assert ring.slot_owners(three + 1, 3) == (first, second, third)


def test_points_in_one_slot_go_by_their_full_hash() -> None:
    ring = HashRing(["node-1", "node-2", "node-3"])
    shared = [pair for pair in itertools.pairwise(ring.points) if pair[0][0] == pair[1][0] and pair[0][2] != pair[1][2]]
    assert shared, "three nodes share some slots"
    for one, other in shared:
        assert one[1] < other[1]
    (first, *_), *_ = shared
    assert ring.slot_owners(first[0], 1) == (next(name for slot, _, name in ring.points if slot == first[0]),)


def test_points_of_one_hash_go_by_name() -> None:
    low, high = COLLIDING
    for order in (low, high), (high, low):
        ring = HashRing(order, vnodes=1)
        assert ring.points[0][:2] == ring.points[1][:2]
        assert ring.slot_owners(0, 2) == (low, high)


# Keys and slots


@given(rings, st.binary(max_size=40), counts)
def test_the_owners_of_a_key_are_those_of_its_slot(ring: HashRing, key: bytes, n: int) -> None:
    assert ring.slot(key) == slot_of(key, ring.seed) == mmh3.hash(key, ring.seed, signed=False) // 2**18
    assert ring.owners(key, n) == ring.slot_owners(ring.slot(key), n)
    assert ring.lookup(key) == ring.owners(key, 1)[0]


def test_a_lookup_in_a_table_already_filled_is_the_same() -> None:
    ring, fresh = (HashRing(["a", "b", "c"], seed=5) for _ in range(2))
    ring.shares()  # asks for every slot
    keys = random_keys(random.Random(4), 1000)
    assert [ring.lookup(key) for key in keys] == [fresh.owners(key, 1)[0] for key in keys]


def test_all_keys_of_a_slot_have_the_same_owners() -> None:
    ring = HashRing([f"node-{number}" for number in range(10)])
    found: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    for key in random_keys(random.Random(2), 30_000):
        found[ring.slot(key)].add(ring.owners(key, 3))
    assert len(found) > 10_000
    assert all(len(owners) == 1 for owners in found.values())


@given(rings, st.text(max_size=20))
def test_text_and_its_utf8_bytes_are_one_key(ring: HashRing, key: str) -> None:
    assert ring.slot(key) == ring.slot(key.encode())
    assert ring.lookup(key) == ring.lookup(key.encode())
    assert ring.owners(key, 2) == ring.owners(key.encode(), 2)


def test_more_owners_than_nodes_are_all_nodes() -> None:
    assert sorted(HashRing(["a", "b"]).owners("key", 5)) == ["a", "b"]
    assert HashRing(["a", "b"]).owners("key", 0) == ()


def test_placement_is_the_same_in_every_version_and_language() -> None:
    """Numbers worked out once and written down: were they to change, clients of two versions would miss each other."""
    assert slot_of(b"hello") == 0x248BFA47 >> 18  # the published test value of MurmurHash3_x86_32
    ring = HashRing(["alpha", "beta", "gamma"], vnodes=2)
    assert ring.points == PLACED
    assert HashRing(["alpha"], vnodes=1, seed=7).points == PLACED_WITH_SEED


def test_the_seed_moves_every_point_and_key() -> None:
    one, other = HashRing(["a", "b"], seed=1), HashRing(["a", "b"], seed=2)
    assert not {point[1] for point in one.points} & {point[1] for point in other.points}
    assert one.slot("key") != other.slot("key")


@pytest.mark.parametrize("pair", [("a", "a1"), ("a", "a\0"), ("a", "a\0\0\0\1"), ("1", "11"), ("node-1", "node-11")])
def test_names_that_begin_alike_share_no_points(pair: tuple[str, str]) -> None:
    """Name and index are hashed such that "a" and 11 are not "a1" and 1."""
    ring = HashRing(pair, vnodes=300)
    hashes: Iterable[set[int]] = ({full for _, full, name in ring.points if name == mine} for mine in pair)
    one, other = hashes
    assert len(one) == len(other) == 300
    assert not one & other


# Misuse


def test_an_empty_ring_owns_nothing() -> None:
    ring = HashRing()
    assert len(ring) == 0
    assert ring.owners("key", 3) == ()
    assert ring.shares() == {}
    with pytest.raises(LookupError, match="empty"):
        ring.lookup("key")
    assert ring.add_node("a").lookup("key") == "a"
    assert ring.add_node("a").remove_node("a") == ring


def test_a_name_can_be_on_a_ring_once_only() -> None:
    with pytest.raises(ValueError, match="'a'"):
        HashRing(["a", "b", "a"])
    with pytest.raises(ValueError, match="'a'"):
        HashRing([RingNode("a", zone="x"), RingNode("a", zone="y")])
    with pytest.raises(ValueError, match="'b'"):
        HashRing(["a", "b"]).add_node("b", weight=2)


def test_what_is_not_there_cannot_be_removed() -> None:
    ring = HashRing(["a"])
    assert "a" in ring
    assert "b" not in ring
    with pytest.raises(KeyError, match="b"):
        ring.remove_node("b")


def test_a_node_is_added_by_name_and_traits_or_as_a_whole() -> None:
    whole = RingNode("b", 2.0, "zone", "host")
    assert HashRing(["a"]).add_node("b", weight=2, zone="zone", host="host") == HashRing(["a"]).add_node(whole)
    assert HashRing(["a"]).add_node("b", weight=2, zone="zone", host="host").nodes[1] == whole


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf, -math.inf, 1e12, 1000.1, "heavy"])
def test_a_weight_is_positive_and_no_absurd_number(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight|heavy"):
        RingNode("a", weight)


@pytest.mark.parametrize(
    ("field", "value"), [("vnodes", 0), ("vnodes", -5), ("vnodes", 10_001), ("seed", -1), ("seed", 2**32)]
)
def test_a_ring_has_points_and_a_seed_of_32_bits(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        HashRing(["a"], **{field: value})


def test_the_largest_weight_and_the_largest_number_of_points_are_allowed() -> None:
    assert RingNode("a", MAX_WEIGHT).weight == 1000.0
    assert HashRing(vnodes=MAX_VNODES).vnodes == 10_000


def test_a_node_has_a_name() -> None:
    with pytest.raises(ValueError, match="name"):
        HashRing([""])


# Cost


def test_a_point_takes_eight_bytes_and_an_owner_list_is_kept_once() -> None:
    """What a client of many nodes keeps is small: no object for each point, and none for each slot."""
    ring = HashRing([f"node-{number}" for number in range(10)])
    assert sys.getsizeof(ring._placed) < 9 * len(ring.points)
    lists = [ring.slot_owners(slot, 3) for slot in range(SLOTS)]
    assert len({id(names) for names in lists}) == len(set(lists)) <= 10 * 9 * 8


@pytest.mark.timing
def test_a_lookup_in_ten_nodes_of_150_points_takes_less_than_a_microsecond() -> None:
    """The best of many rounds: what the code costs, not what else the machine does."""
    ring = HashRing([f"node-{number}" for number in range(10)])
    assert len(ring.points) == 1500
    keys = random_keys(random.Random(3), 1000)

    def look_up_all() -> None:
        lookup = ring.lookup
        for key in keys:
            lookup(key)

    look_up_all()  # the table is filled on first use
    assert min(timeit.repeat(look_up_all, number=1, repeat=30)) / len(keys) < 1e-6
