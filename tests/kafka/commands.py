"""``eddy`` as a user types it: one process a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

EDDY = [sys.executable, "-P", "-m", "services"]


def eddy(*argv: object, stdin: str = "", timeout_s: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EDDY, *map(str, argv)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, **env},
    )


def one_line(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """What it ended with: one readable line behind the log, no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    last = [line for line in done.stderr.splitlines() if line.startswith("eddy: ")]
    assert last == done.stderr.splitlines()[-1:], done.stderr
    return last[0]


def told(*argv: object) -> Any:
    """What a command that ends well prints as one JSON object."""
    done = eddy(*argv, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
