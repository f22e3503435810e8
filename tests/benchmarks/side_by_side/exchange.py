"""What is said to a server alone, byte by byte: the same get again and again, whose answer is always the same."""

from __future__ import annotations

import socket

import attrs

from dcache.testing import LocalCluster
from dcache.testing.cluster import HOST, table_of
from dcache.wire import PROTOCOL, REPLY, Decoder, Limits, encode_request

KEY = "alone:key:0001"
BATCH = [f"batch:key:{number:04}" for number in range(100)]
VALUE = bytes(range(100))
PATIENCE = 5.0


@attrs.frozen
class Exchange:
    """`hello` begins a connection, if it is not empty, and is answered by so many bytes."""

    request: bytes
    reply: bytes
    hello: bytes = b""
    hello_reply: int = 0


def with_node(cluster: LocalCluster) -> Exchange:
    """A get as a client sends it to the one node of a cluster."""
    return _asked(cluster, [KEY], "get", KEY.encode())


def batch_with_node(cluster: LocalCluster) -> Exchange:
    """A get of a batch, likewise."""
    return _asked(cluster, BATCH, "get_many", [(key.encode(),) for key in BATCH])


def _asked(cluster: LocalCluster, keys: list[str], method: str, argument: object) -> Exchange:
    address = cluster.addresses[0]
    with cluster.client(timeout=PATIENCE) as client:
        client.set_many(dict.fromkeys(keys, VALUE))
    table = table_of(address)
    assert table is not None
    hello = encode_request(0, "hello", (PROTOCOL, None, False))
    request = encode_request(1, method, (table.fingerprint, b"", argument))
    with socket.create_connection((HOST, int(address.rpartition(":")[2])), timeout=PATIENCE) as connection:
        greeting = _message(connection, hello)
        return Exchange(request, _message(connection, request), hello, len(greeting))


def _message(connection: socket.socket, request: bytes) -> bytes:
    """What a node answers."""
    decoder, data = Decoder(Limits().max_frame, Limits().max_batch), b""
    connection.sendall(request)
    while True:
        more = connection.recv(1 << 16)
        if not more:
            raise ConnectionError("the node closed the connection")
        decoder.feed(more)
        data += more
        for message in decoder.messages():
            if message[0] != REPLY or message[2] is not None:
                raise ConnectionError(f"the node answered {message}")
            return data


def with_memcached(port: int) -> Exchange:
    stored = b"set %s 0 0 %d\r\n%s\r\n" % (KEY.encode(), len(VALUE), VALUE)
    reply = b"VALUE %s 0 %d\r\n%s\r\nEND\r\n" % (KEY.encode(), len(VALUE), VALUE)
    return _stored(port, stored, b"STORED\r\n", Exchange(b"get %s\r\n" % KEY.encode(), reply))


def with_redis(port: int) -> Exchange:
    return _stored(
        port, _redis(b"SET", KEY.encode(), VALUE), b"+OK\r\n", Exchange(_redis(b"GET", KEY.encode()), _bulk(VALUE))
    )


def _redis(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(map(_bulk, words))


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(word), word)


def _stored(port: int, request: bytes, answer: bytes, exchange: Exchange) -> Exchange:
    with socket.create_connection((HOST, port), timeout=PATIENCE) as connection:
        connection.sendall(request)
        told = connection.recv(1 << 16)
    if told != answer:
        raise ConnectionError(f"the server answered {told!r}")
    return exchange
