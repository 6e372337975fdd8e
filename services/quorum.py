"""Three brokers that are one cluster: any one of them may be lost, and its data is on the two others.

Each is broker and controller at once, as that is the least that survives the loss of any one. Topics have three
replicas, of which two must have a record before it is acknowledged, and a replica that is behind never leads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from services.embedded import START_TIMEOUT_S, Broker, new_cluster_id
from services.jars import BrokerUnavailable
from services.ports import brokers_known, free_port

SIZE = 3
HEAP_MB = 256
LOOK_S = 0.05
REPLICATED = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
}


class Quorum:
    """``start``, then ``stop``; in between one of ``brokers`` at a time may be killed and started again."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """``settings`` are added to every broker's properties. Raises BrokerUnavailable where no ports are free."""
        ports: list[int] = []
        while len(ports) < 2 * SIZE:
            port = free_port()
            if port not in ports:
                ports.append(port)
        listening, controlling = ports[:SIZE], ports[SIZE:]
        cluster = new_cluster_id()
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(controlling, 1))
        self._ports = listening
        self.brokers = [
            Broker(
                port=port,
                cluster=cluster,
                heap_mb=HEAP_MB,
                settings={
                    **REPLICATED,
                    "node.id": str(node),
                    "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
                    "controller.quorum.voters": voters,
                    **(settings or {}),
                },
            )
            for node, (port, controller) in enumerate(zip(listening, controlling), 1)
        ]

    @property
    def address(self) -> str:
        """What clients call bootstrap servers: all three."""
        return ",".join(broker.address for broker in self.brokers)

    def start(self) -> None:
        """Returns when every broker knows all of them. Raises BrokerUnavailable; nothing is left running then."""
        try:
            for broker in self.brokers:
                broker.launch()
            for broker in self.brokers:
                broker.wait()
            self.wait_for_all()
        except BaseException:
            self.stop()
            raise

    def wait_for_all(self) -> None:
        """Returns when every broker lists all of them. Raises BrokerUnavailable where that takes long."""
        end = time.monotonic() + START_TIMEOUT_S
        while any(brokers_known(port) < SIZE for port in self._ports):
            if time.monotonic() > end:
                raise BrokerUnavailable(
                    f"the brokers at {self.address} did not find each other in {START_TIMEOUT_S:g} s"
                )
            # No broker tells when another has joined.
            time.sleep(LOOK_S)

    def stop(self) -> None:
        """Ends all processes and removes their folders. May be called twice."""
        for broker in self.brokers:
            broker.stop()
