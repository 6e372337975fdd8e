"""``python -m tests.benchmarks`` (``make bench``): the worker beside its peers, on a real Kafka."""

from tests.benchmarks.throughput import main

main()
