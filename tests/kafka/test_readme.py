"""The example of the README, as a newcomer would type it; only the broker is the tests' own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.broker import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language: str, after: str) -> str:
    """The first code block of the language behind these words."""
    found = re.search(rf"```{language}\n(.*?)```", README.split(after, 1)[1], re.DOTALL)
    assert found is not None
    return found[1]


def test_a_module_becomes_a_running_stream_in_twenty_lines(broker: Broker, tmp_path: Path) -> None:
    module = block("python", "## From your own module to a running stream")
    commands = block("sh", module)
    code = [line for line in [*module.splitlines(), *commands.splitlines()] if line.strip() and line[0] != "#"]
    assert len(code) <= 20

    (tmp_path / "detector.py").write_text(module)
    commands = re.sub(r"^eddy broker start.*\n", "", commands, flags=re.MULTILINE)
    commands = re.sub(r"(eddy run .*) &", r"\1 --http-port 0 2>worker.log & worker=$!", commands)
    commands = re.sub(r"(eddy tail .*)", r"\1 --json", commands)
    script = f"set -eu\n{commands}\nkill $worker\nwait $worker\n"
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "EDDY_BOOTSTRAP_SERVERS": broker.address},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"key"')]
    assert len(answers) == 100
    assert {a["key"] for a in answers} == {"sensor-1"}
    assert {json.loads(a["value"])["label"] for a in answers} <= {"quiet", "alarm"}
