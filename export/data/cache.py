"""Where data sets stay between runs, and how Debian's packages get there: with apt's own tools, without root.

apt keeps its lists in the cache too, so it does not matter whether `apt-get update` ever ran on this machine, and
nothing outside the cache is touched. What arrives is checked by apt against the archive's signatures, unpacked beside
its place and moved there by one rename: a package is in the cache whole or not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import ConfigError

LIMIT_S = 900
"""Longest that one call of apt may take; apt's own time limits for a silent server are shorter."""

# The machine's sources, keys and proxies stay in force. Its hooks do not: they are for the system's package lists.
_APT = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "/dev/null";
Dir::Cache "{folder}/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
"""
_UNKNOWN = re.compile(r"Unable to locate package|has no candidate|No packages found|has no installation candidate")
_DISK = re.compile(r"No space left|enough free space|Read-only file|quota exceeded|File too large|Wrote only \d+ of")
_NETWORK = re.compile(r"Failed to fetch|Could not resolve|Could not connect|Some index files failed|Unable to fetch")


@dataclass(frozen=True)
class Package:
    """A Debian package in the cache."""

    name: str
    version: str
    source: str
    """Name of the source package, under which its copyright file and upstream are known."""
    root: Path
    """Its files, at their places below this folder: ``root / "usr/share/..."``."""


def cache_folder() -> Path:
    """``$EDDY_CACHE``, else ``eddy`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; not made here. Raises ConfigError."""
    if own := os.environ.get("EDDY_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "eddy"
    try:
        return Path.home() / ".cache" / "eddy"
    except RuntimeError:
        raise ConfigError("no home folder to keep data in: set EDDY_CACHE to a folder") from None


def debian(package: str) -> Path:
    """The unpacked root of a Debian package, downloaded when the cache has none yet.

    Two processes may ask at once: the second waits and finds it. Raises ConfigError, saying what to do, where there is
    no apt, no such package, no network or no room.
    """
    return debian_package(package).root


def debian_package(package: str) -> Package:
    """As ``debian``, with the version that was downloaded, for a model's card."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package):
        raise ConfigError(f"{package!r} cannot be the name of a Debian package")
    folder = cache_folder() / "data" / "debian"
    if found := _cached(folder, package):
        return found
    with exclusive(folder):
        if found := _cached(folder, package):
            return found
        try:
            _bring(folder, package)
        except OSError as error:
            raise ConfigError(f"Debian package {package}: {folder}: {error.strerror or error}") from None
        found = _cached(folder, package)
    if found is None:
        raise ConfigError(f"Debian package {package} vanished from {folder} while it was fetched; try again")
    return found


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process at a time fills ``folder``, which is made when missing. Raises ConfigError when it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"cannot keep data in {folder}: {error.strerror}; set EDDY_CACHE to a folder that can be written"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cached(folder: Path, package: str) -> Package | None:
    """A package that is there; its folder appears by one rename, so what is there is whole."""
    try:
        known = json.loads((folder / package / "package.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / package / 'package.json'}: {error}; delete {folder / package}") from None
    return Package(known["name"], known["version"], known["source"], folder / package / "root")


def _bring(folder: Path, package: str) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise ConfigError(
                f"Debian package {package} is not in {folder}, and there is no {tool} here to fetch it with: run"
                f" `make data` on a Debian or Ubuntu machine and copy {folder} here"
            )
    apt = folder.parent / "apt"
    for needed in ("lists/partial", "cache/archives/partial"):
        (apt / needed).mkdir(parents=True, exist_ok=True)
    settings = apt / "apt.conf"
    settings.write_text(_APT.format(folder=apt))
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as work:
        # Lists that are old name files that the archive no longer has: one look at new ones.
        fresh = not any(apt.glob("lists/*_Packages*"))
        if fresh:
            _apt(settings, ["update"], apt, package)
        try:
            _apt(settings, ["download", package], Path(work), package)
        except ConfigError:
            if fresh:
                raise
            _apt(settings, ["update"], apt, package)
            _apt(settings, ["download", package], Path(work), package)
        (archive,) = Path(work).glob("*.deb")
        whole = Path(work) / "whole"
        root = whole / "root"
        root.mkdir(parents=True)
        _run(["dpkg-deb", "--extract", str(archive), str(root)], folder, package)
        shown = "${Version}\n${source:Package}"
        fields = _run(["dpkg-deb", "--show", "--showformat", shown, str(archive)], folder, package)
        version, source = fields.split("\n")
        known = Package(package, version, source, root)
        record = {k: v for k, v in asdict(known).items() if k != "root"}
        (whole / "package.json").write_text(json.dumps(record, indent=1) + "\n")
        os.rename(whole, folder / package)


def _apt(settings: Path, words: Sequence[str], folder: Path, package: str) -> None:
    _run(["apt-get", "--quiet", "--config-file", str(settings), *words], folder, package)


def _run(command: Sequence[str], folder: Path, package: str) -> str:
    """Standard output of a tool of apt's. Raises ConfigError that says whose fault it was."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"Debian package {package}: {command[0]} was not done after {LIMIT_S} s") from None
    if done.returncode == 0:
        return done.stdout
    said = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in said if line.startswith(("E:", "dpkg-deb: error"))] or said or ["no message"]
    text, last = "\n".join(said), errors[0].removeprefix("E: ")
    if _DISK.search(text):
        raise ConfigError(
            f"Debian package {package}: no room in {folder} ({last}); free some, or set EDDY_CACHE to another folder"
        )
    if _UNKNOWN.search(text):
        raise ConfigError(f"Debian package {package}: this machine's package sources have none of that name ({last})")
    if _NETWORK.search(text):
        raise ConfigError(f"Debian package {package}: the package archive cannot be reached ({last})")
    raise ConfigError(f"Debian package {package}: {' '.join(command[:1])} failed ({last})")
