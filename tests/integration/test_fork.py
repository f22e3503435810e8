"""A process that forks while its client is in use: parent and child go on, each with connections of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dcache.testing import LocalCluster

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork there")

PRELUDE = """
import json, os, sys, threading, warnings
from dcache import AsyncClient, Client
warnings.filterwarnings("ignore", message="This process .* is multi-threaded", category=DeprecationWarning)

def check(client, name, rounds):
    wrong = 0
    for number in range(rounds):
        key, value = f"{name}:{number % 50}", [name, number]
        client.set(key, value)
        wrong += client.get(key) != value
    return wrong

def writer(client):
    return int.from_bytes(client.set("version", 1)[8:], "big")

def tell(**facts):
    os.write(1, (json.dumps(facts) + "\\n").encode())
"""

BUSY = (
    PRELUDE
    + """
client = Client(sys.argv[1:], timeout=20.0, connect_timeout=10.0)
stop = threading.Event()
wrong_in_threads = []

def busy(number):
    while not stop.is_set():
        wrong_in_threads.append(check(client, f"thread{number}", 5))

threads = [threading.Thread(target=busy, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
children = []
for child in range(4):
    check(client, "parent", 20)
    pid = os.fork()
    if pid == 0:
        wrong = check(client, f"child{child}", 500) + check(client.with_options(timeout=10.0), f"view{child}", 20)
        computed = client.get_or_set(f"own{child}", lambda: child)
        tell(who=f"child{child}", wrong=wrong, writer=writer(client), computed=computed)
        client.close()
        os._exit(0)
    children.append(pid)
wrong = check(client, "parent", 1000)
statuses = [os.waitpid(pid, 0)[1] for pid in children]
stop.set()
for thread in threads:
    thread.join()
wrong += check(client, "parent", 100) + sum(wrong_in_threads)
tell(who="parent", wrong=wrong, writer=writer(client), statuses=statuses)
client.close()
"""
)

IN_A_COMPUTATION = (
    PRELUDE
    + """
client = Client(sys.argv[1:], timeout=20.0, connect_timeout=10.0)
begun, forked = threading.Event(), threading.Event()

def slow():
    begun.set()
    forked.wait()
    return "parent's"

thread = threading.Thread(target=lambda: tell(who="thread", got=client.get_or_set("computed", slow)))
thread.start()
begun.wait()
pid = os.fork()
if pid == 0:
    tell(who="child", got=client.get_or_set("computed", lambda: "child's"))
    os._exit(0)
os.waitpid(pid, 0)
forked.set()
thread.join()
client.close()
"""
)

ASYNC = (
    PRELUDE
    + """
import asyncio
client = AsyncClient(sys.argv[1:], timeout=20.0, connect_timeout=10.0)

async def check_async(name):
    async def one(number):
        key, value = f"{name}:{number}", [name, number]
        await client.set(key, value)
        return await client.get(key) != value
    wrong = sum(await asyncio.gather(*(one(number) for number in range(1000))))
    return wrong, int.from_bytes((await client.set("version", 1))[8:], "big")

def in_a_child(name):
    wrong, writer = asyncio.run(closing(name))
    tell(who=name, wrong=wrong, writer=writer)

async def closing(name):
    async with client:
        return await check_async(name)

async def main():
    async with client:
        await check_async("parent")
        pid = os.fork()
        if pid == 0:
            asyncio._set_running_loop(None)  # a child of multiprocessing starts outside of any loop
            try:
                in_a_child("child")
            finally:
                os._exit(0)
        wrong, writer = await check_async("parent")
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        again, _ = await check_async("parent")
        tell(who="parent", wrong=wrong + again, writer=writer, statuses=[status])

asyncio.run(main())
"""
)


def told(script: str, cluster: LocalCluster) -> dict[str, dict[str, object]]:
    """Run `script`; what each process told, by who."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *cluster.addresses],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return {line["who"]: line for line in map(json.loads, done.stdout.splitlines())}


def test_a_fork_while_threads_are_using_the_client_mixes_up_nothing(dcache_cluster: LocalCluster) -> None:
    """Every process gets the values of its own keys, and writes under a name of its own."""
    facts = told(BUSY, dcache_cluster)
    assert set(facts) == {"parent", "child0", "child1", "child2", "child3"}
    assert [fact["wrong"] for fact in facts.values()] == [0] * 5
    assert facts["parent"]["statuses"] == [0] * 4
    assert len({fact["writer"] for fact in facts.values()}) == 5
    assert [facts[f"child{number}"]["computed"] for number in range(4)] == [0, 1, 2, 3]


def test_a_child_does_not_wait_for_a_computation_of_its_parent(dcache_cluster: LocalCluster) -> None:
    """Whose threads do not live in it."""
    facts = told(IN_A_COMPUTATION, dcache_cluster)
    assert facts["child"]["got"] == "child's"
    assert facts["thread"]["got"] == "parent's"


def test_a_fork_beside_a_running_loop_mixes_up_nothing(dcache_cluster: LocalCluster) -> None:
    facts = told(ASYNC, dcache_cluster)
    assert {who: fact["wrong"] for who, fact in facts.items()} == {"parent": 0, "child": 0}
    assert facts["parent"]["statuses"] == [0]
    assert facts["parent"]["writer"] != facts["child"]["writer"]


def test_a_fork_of_a_client_that_was_never_used_is_nothing_special(dcache_cluster: LocalCluster) -> None:
    script = (
        PRELUDE
        + """
client = Client(sys.argv[1:], timeout=20.0)
pid = os.fork()
wrong = check(client, "child" if pid == 0 else "parent", 50)
tell(who="child" if pid == 0 else "parent", wrong=wrong, writer=writer(client))
client.close()
if pid:
    os.waitpid(pid, 0)
"""
    )
    facts = told(script, dcache_cluster)
    assert {who: fact["wrong"] for who, fact in facts.items()} == {"parent": 0, "child": 0}
    assert facts["parent"]["writer"] != facts["child"]["writer"]
