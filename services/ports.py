"""Loopback ports, and the brokers that answer on them."""

from __future__ import annotations

import random
import socket
import struct

from services.jars import BrokerUnavailable

# On an ephemeral port (32768 and above) a restarted broker may find that a client of its own has taken it.
PORTS = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether nobody listens on this loopback port."""
    with socket.socket() as probe:
        # Connections of a broker that was just killed linger in TIME_WAIT; they do not stand in the way of the next.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port(taken: int | None = None) -> int:
    """A loopback port nobody listens on just now, other than ``taken``. Raises BrokerUnavailable when there is none."""
    for port in random.sample(PORTS, 200):
        if port != taken and is_free(port):
            return port
    raise BrokerUnavailable(f"no free port on 127.0.0.1 between {PORTS.start} and {PORTS.stop}")


def brokers_known(port: int, timeout_s: float = 1.0) -> int:
    """How many brokers the one on this loopback port lists, itself among them; 0: none answers there."""
    request = struct.pack(">hhih", 3, 1, 1, 4) + b"eddy" + struct.pack(">i", 0)  # Metadata v1 of no topics
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            reply = connection.makefile("rb").read(12)
    except OSError:
        return 0
    return int(struct.unpack(">iii", reply)[2]) if len(reply) == 12 else 0


def answers(port: int) -> bool:
    """Whether a broker that lists itself in its metadata listens on this loopback port."""
    return brokers_known(port) > 0
