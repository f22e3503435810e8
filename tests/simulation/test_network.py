"""Simulated connections behave like TCP, and paths can be made to misbehave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dcache.testing.sim import Simulation
from tests.simulation.ears import Echo, Talk, idle, say


@pytest.fixture
def sim() -> Iterator[Simulation]:
    with Simulation(seed=1) as simulation:
        simulation.network.default.delay = (1.0, 1.0)
        yield simulation
        assert simulation.complaints == []


@pytest.fixture
def talk(sim: Simulation) -> Talk:
    return Talk(sim)


# -- order, loss ------------------------------------------------------------------------------------------------------


def test_what_is_written_arrives_after_the_delay(sim: Simulation, talk: Talk) -> None:
    ear = talk.connect()
    begin = sim.now
    say(ear, b"x")
    sim.run(1)
    assert talk.served[0].heard == [(pytest.approx(begin + 0.001), b"x")]


def test_a_connection_keeps_the_order(sim: Simulation, talk: Talk) -> None:
    sim.network.default.delay, sim.network.default.loss = (0.1, 50.0), 0.3
    ear = talk.connect(30)
    for number in range(256):
        say(ear, bytes([number]))
    sim.run(60)
    assert talk.served[0].text == bytes(range(256))


def test_connections_overtake_each_other(sim: Simulation, talk: Talk) -> None:
    ears = [talk.connect() for _ in range(20)]
    sim.network.default.delay = (0.1, 50.0)
    for ear in ears:
        say(ear, b"x")
    sim.run(1)
    arrivals = [served.heard[0][0] for served in talk.served]
    assert arrivals != sorted(arrivals)


def test_loss_is_delay(sim: Simulation, talk: Talk) -> None:
    """A lost packet is sent again after 200 ms, then after twice as long each time."""
    ears = [talk.connect() for _ in range(100)]
    sim.network.default.loss = 0.5
    begin = sim.now
    for ear in ears:
        say(ear, b"x")
    sim.run(3600)
    waits = {round(served.heard[0][0] - begin, 3) for served in talk.served}
    assert {0.001, 0.201, 0.601} <= waits
    assert 0.401 not in waits


# -- cut, hold, heal --------------------------------------------------------------------------------------------------


def test_a_path_can_be_cut_one_way(sim: Simulation) -> None:
    talk = Talk(sim, Echo)
    ear = talk.connect()
    sim.network.cut("server", "client")
    say(ear, b"x")
    sim.run(60)
    assert (talk.served[0].text, ear.text) == (b"x", b"")


def test_what_was_sent_into_a_cut_arrives_some_time_after_it_is_healed(sim: Simulation, talk: Talk) -> None:
    """The sender's timer has backed off meanwhile, for up to 5 s."""
    waits = []
    for cut_for in (1, 60):
        ears = [talk.connect() for _ in range(20)]
        served, talk.served = talk.served, []
        sim.network.cut("client", "server")
        for ear in ears:
            say(ear, b"x")
        sim.run(cut_for)
        assert not any(one.heard for one in served)
        sim.network.heal("client", "server")
        healed = sim.now
        sim.run(10)
        waits.append(max(one.heard[0][0] - healed for one in served))
    assert 0.1 < waits[0] <= 1.001
    assert 1.1 < waits[1] <= 5.001


def test_it_arrives_even_if_the_writer_has_given_up(sim: Simulation, talk: Talk) -> None:
    ear = talk.connect()
    sim.network.cut("client", "server")
    say(ear, b"late")
    talk.client.kill()
    sim.run(1)
    sim.network.heal("client", "server")
    sim.run(5)
    assert talk.served[0].text == b"late"
    assert talk.served[0].broken


def test_a_path_that_was_held_lets_go_of_everything_at_once(sim: Simulation, talk: Talk) -> None:
    ears = [talk.connect() for _ in range(3)]
    sim.network.hold("client", "server")
    for ear in ears:
        say(ear, b"x")
        sim.run(1)
    assert not any(served.heard for served in talk.served)
    begin = sim.now
    sim.network.heal("client", "server")
    sim.run(1)
    assert [served.heard for served in talk.served] == [[(pytest.approx(begin + 0.001), b"x")]] * 3


def test_connecting_through_a_cut_succeeds_when_it_is_healed(sim: Simulation, talk: Talk) -> None:
    sim.network.cut("server", "client")
    dialled = talk.dial()
    sim.run(1)
    assert not dialled.done()
    sim.network.heal("server", "client")
    assert sim.run_until(dialled.done, 5)
    dialled.result()


def test_calm_ends_all_that_is_wrong(sim: Simulation) -> None:
    talk = Talk(sim, Echo)
    ear = talk.connect()
    network = sim.network
    network.cut("client", "server")
    network.hold("server", "client")
    network.path("client", "server").loss = network.default.loss = 0.9
    network.path("server", "client").delay = (900.0, 900.0)
    say(ear, b"1")
    network.calm()
    sim.run(10)
    say(ear, b"2")
    begin = sim.now
    sim.run(1)
    assert ear.heard[-1] == (pytest.approx(begin + 0.002), b"2")


# -- how connections end ----------------------------------------------------------------------------------------------


def test_close_is_the_end_of_both_sides_after_what_was_written(sim: Simulation, talk: Talk) -> None:
    ear = talk.connect()
    say(ear, b"bye")
    assert ear.line is not None
    ear.line.close()
    sim.run(1)
    assert talk.served[0].text == b"bye"
    assert (ear.lost, talk.served[0].lost) == ([None], [None])


def test_who_writes_to_one_that_has_closed_is_reset(sim: Simulation, talk: Talk) -> None:
    ear = talk.connect()
    sim.network.hold("client", "server")
    assert ear.line is not None
    ear.line.close()
    sim.run(1)
    say(talk.served[0], b"anybody there?")
    sim.network.path("client", "server").held = False  # the end of the connection is kept back: its reset comes first
    sim.run(1)
    assert talk.served[0].broken


def test_abort_resets_the_other_side(sim: Simulation, talk: Talk) -> None:
    ear = talk.connect()
    assert ear.line is not None
    ear.line.abort()
    sim.run(1)
    assert ear.lost == [None]
    assert talk.served[0].broken


def test_reset_breaks_the_connections_of_two_hosts_on_both_sides(sim: Simulation, talk: Talk) -> None:
    ears = [talk.connect() for _ in range(3)]
    sim.network.reset("client", "server")
    sim.run(1)
    assert all(ear.broken for ear in (*ears, *talk.served))


def test_reset_breaks_an_attempt_to_connect(sim: Simulation, talk: Talk) -> None:
    dialled = talk.dial()
    sim.run(0.0005)
    sim.network.reset("client", "server")
    sim.run(1)
    with pytest.raises(ConnectionResetError):
        dialled.result()
    assert all(served.broken for served in talk.served)


def test_who_gives_up_connecting_leaves_nothing_open(sim: Simulation, talk: Talk) -> None:
    dialled = talk.dial()
    sim.run(0.0005)
    dialled.cancel()
    sim.run(1)
    assert dialled.cancelled()
    assert [served.broken for served in talk.served] == [True]


# -- hosts ------------------------------------------------------------------------------------------------------------


def test_where_nobody_listens_connections_are_refused(sim: Simulation, talk: Talk) -> None:
    for dialled in (talk.dial(port=8), talk.dial(port=7, to="client")):
        sim.run(1)
        with pytest.raises(ConnectionRefusedError):
            dialled.result()


def test_there_is_no_way_to_a_host_that_does_not_exist(sim: Simulation, talk: Talk) -> None:
    dialled = talk.dial(to="nowhere")
    sim.run(1)
    with pytest.raises(OSError, match="nowhere"):
        dialled.result()


def test_a_process_that_is_killed_resets_its_connections_and_refuses_new_ones(sim: Simulation, talk: Talk) -> None:
    ear = talk.connect()
    talk.server.kill()
    dialled = talk.dial()
    sim.run(1)
    assert ear.broken
    with pytest.raises(ConnectionRefusedError):
        dialled.result()


def test_a_host_without_power_is_silent_until_it_is_up_again(sim: Simulation, talk: Talk) -> None:
    """Then it resets what it does not know."""
    ear = talk.connect()
    talk.server.power_off()
    dialled = talk.dial()
    say(ear, b"anybody there?")
    sim.run(600)
    assert not ear.lost
    assert not dialled.done()
    talk.server.start(talk.serve)
    sim.run(1)
    say(ear, b"and now?")
    sim.run(1)
    assert ear.broken
    assert talk.connect().line is not None


def test_what_a_host_had_sent_when_its_power_went_arrives_all_the_same(sim: Simulation, talk: Talk) -> None:
    ear = talk.connect()
    say(ear, b"last words")
    talk.client.power_off()
    sim.run(1)
    assert talk.served[0].text == b"last words"
    assert not talk.served[0].lost


def test_what_a_cut_keeps_back_is_gone_when_the_power_goes(sim: Simulation, talk: Talk) -> None:
    ear = talk.connect()
    sim.network.cut("client", "server")
    say(ear, b"never sent")
    talk.client.power_off()
    sim.network.heal("client", "server")
    sim.run(60)
    assert talk.served[0].text == b""


def test_a_process_that_is_stopped_is_connected_to_and_answers_later(sim: Simulation) -> None:
    """Its kernel accepts, and keeps what comes."""
    talk = Talk(sim, Echo)
    sim.run(1)
    talk.server.pause()
    ear = talk.connect()
    say(ear, b"hello")
    sim.run(60)
    assert (talk.served, ear.text) == ([], b"")
    talk.server.resume()
    sim.run(1)
    assert ear.text == b"hello"


def test_connections_that_a_stopped_process_does_not_know_of_end_with_it(sim: Simulation, talk: Talk) -> None:
    sim.run(1)
    talk.server.pause()
    killed = talk.connect()
    talk.server.kill()
    sim.run(1)
    assert killed.broken


def test_connections_that_broke_while_a_process_was_stopped_are_lost_when_it_goes_on(
    sim: Simulation, talk: Talk
) -> None:
    sim.run(1)
    talk.server.pause()
    ear = talk.connect()
    sim.network.reset("client", "server")
    sim.run(1)
    talk.server.resume()
    sim.run(1)
    assert ear.broken
    assert [served.broken for served in talk.served] == [True]


# -- pressure ---------------------------------------------------------------------------------------------------------


def test_who_writes_faster_than_the_other_reads_is_told_to_wait(sim: Simulation, talk: Talk) -> None:
    ear = talk.connect()
    talk.server.pause()
    for _ in range(3):
        say(ear, bytes(50_000))
    assert ear.told == ["pause"]
    sim.run(60)
    assert ear.told == ["pause"]
    talk.server.resume()
    sim.run(1)
    assert ear.told == ["pause", "resume"]
    assert len(talk.served[0].text) == 150_000


def test_who_does_not_read_makes_the_other_wait(sim: Simulation, talk: Talk) -> None:
    ear = talk.connect()
    sim.run(1)
    line = talk.served[0].line
    assert line is not None
    line.pause_reading()
    for letter in b"abc":
        say(ear, bytes([letter]) * 50_000)
    sim.run(1)
    assert ear.told == ["pause"]
    line.resume_reading()
    sim.run(1)
    assert ear.told == ["pause", "resume"]
    assert talk.served[0].text == b"".join(bytes([letter]) * 50_000 for letter in b"abc")


def test_the_network_counts_what_is_sent(sim: Simulation, talk: Talk) -> None:
    sim.host("idle").start(idle)
    ear = talk.connect()
    before = sim.network.messages, sim.network.bytes
    say(ear, b"12345")
    assert (sim.network.messages, sim.network.bytes) == (before[0] + 1, before[1] + 5)
