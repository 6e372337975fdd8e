"""Names of workers on one machine, with real processes that hold them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, IdentityTaken
from services.identity import runtime_folder, take_identity

HOST = socket.gethostname()
SERVERS = "127.0.0.1:9092"


def holder(folder: Path, worker_id: str) -> subprocess.Popen[str]:
    """A process that has taken the name and waits to be killed."""
    program = (
        "import sys, signal; from pathlib import Path; from services.identity import take_identity\n"
        f"held = take_identity({worker_id!r}, 'g', {SERVERS!r}, Path(sys.argv[1]))\n"
        "print(held.worker_id, flush=True); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == (worker_id or f"{HOST}-1")
    return process


def test_the_first_free_number_is_taken_and_given_back(tmp_path: Path) -> None:
    first = take_identity("", "g", SERVERS, tmp_path)
    second = take_identity("", "g", SERVERS, tmp_path)
    assert (first.worker_id, second.worker_id) == (f"{HOST}-1", f"{HOST}-2")
    first.release()
    with take_identity("", "g", SERVERS, tmp_path) as again:
        assert again.worker_id == f"{HOST}-1"  # a restarted worker is known to its group
    second.release()


def test_a_name_held_by_a_live_process_is_refused_and_free_once_it_was_killed(tmp_path: Path) -> None:
    process = holder(tmp_path, "w1")
    try:
        with pytest.raises(IdentityTaken, match=f"'w1' of group 'g' is taken by process {process.pid}"):
            take_identity("w1", "g", "localhost:9092", tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    take_identity("w1", "g", SERVERS, tmp_path).release()


def test_groups_and_clusters_do_not_share_names(tmp_path: Path) -> None:
    held = [take_identity("w1", group, servers, tmp_path) for group in ("g", "h") for servers in ("a:9092", "b:9092")]
    with pytest.raises(IdentityTaken):
        take_identity("w1", "g", "b:9092", tmp_path)
    for identity in held:
        identity.release()


def test_the_folder_of_locks_must_be_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert runtime_folder() == tmp_path / "run" / "eddy"
    assert (tmp_path / "run" / "eddy").stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"eddy-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="not this user's own"):
        runtime_folder()
