"""How the command line begins and ends: fast help, one line for what cannot be done, exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Config
from services.cli import main

TOOLS = tuple(
    f"{tool} {action}"
    for tool, actions in (
        ("state", ("inspect", "end", "export", "import", "repartition")),
        ("dlq", ("list", "replay")),
    )
    for action in actions
)
HEAVY = ("numpy", "onnx", "onnxruntime", "aiokafka", "torch", "prometheus_client")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr holds: exactly one line that begins with ``eddy: ``."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("eddy: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from services.cli import main\n"
        "for tool in ('state', 'dlq'):\n"
        "    try: main([tool, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--commit-interval-ms" in done.stdout


@pytest.mark.parametrize("command", ["demo", "run", "produce", "tail", "topics create", "inspect", "doctor", *TOOLS])
def test_every_command_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"eddy {command}" in out.split("examples:")[1]


def test_every_setting_of_the_pipeline_is_a_flag_with_its_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Config):
        if field.name != "provider_options":  # nested: a matter for the file
            assert f"--{field.name.replace('_', '-')}" in out
            assert " ".join(field.metadata["doc"].split()) in out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["run", "--slotz", "3"], "unrecognized arguments: --slotz 3 (see eddy --help)"),
        (["topics", "create", "--input", "a"], "required: --output (see eddy topics create --help)"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert expected in said(capsys)


MODEL = ["--model", "m", "--input", "i", "--output", "o"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["run"], "model is not set: give --model, EDDY_MODEL or model: in the file"),
        (["run", *MODEL, "--slots", "many"], "--slots is 'many': expected a whole number"),
        (["run", *MODEL, "--slots", "0"], "slots is 0: must be at least 1"),
        (["run", *MODEL, "--log-format", "xml"], "log_format is 'xml': expected one of text, json"),
        (["run", *MODEL, "--bootstrap-servers", "memory"], "lives inside one process"),
        (["run", *MODEL, "--config", "/nowhere.yaml"], "cannot read the configuration /nowhere.yaml"),
        (["run", *MODEL], "no model at m"),
        (["inspect", "nowhere"], "no model at nowhere"),
        (["produce", "t", "nowhere.txt"], "no file nowhere.txt"),
        (["produce", "t", "--header", "oops"], "--header 'oops': expected NAME=VALUE"),
        (["produce", "t", "--key", "k", "--record-bytes", "0"], "--record-bytes is 0"),
        (["topics", "create", "--input", "i", "--output", "o", "--partitions", "0"], "--partitions is 0"),
        (["tail", "t", "--bootstrap-servers", "127.0.0.1:1"], "no broker answers at 127.0.0.1:1"),
        (["tail", "t", "--bootstrap-servers", "nonsense"], "no broker answers at nonsense"),
        (["demo", "--steps", "0"], "--steps is 0"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_two(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert expected in said(capsys)


def test_a_debugger_gets_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDDY_DEBUG", "1")
    with pytest.raises(Exception, match="no model at nowhere"):
        main(["inspect", "nowhere"])


def test_environment_stands_behind_flags_and_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "worker.yaml"
    file.write_text("model: from-file\ninput: i\noutput: o\n")
    assert main(["run", "--config", str(file)]) == 2
    assert "no model at from-file" in said(capsys)
    monkeypatch.setenv("EDDY_MODEL", "from-environment")
    assert main(["run", "--config", str(file)]) == 2
    assert "no model at from-environment" in said(capsys)
    assert main(["run", "--config", str(file), "--model", "from-flag"]) == 2
    assert "no model at from-flag" in said(capsys)


def test_a_cut_off_model_file_is_one_line(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes((shipped / "1" / "model.onnx").read_bytes()[:5000])
    assert main(["run", "--model", str(broken), "--input", "i", "--output", "o"]) == 2
    assert f"{broken}: not a readable ONNX model" in said(capsys)


def test_inspect_says_what_a_stream_costs(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shipped), "--slots", "1000", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    states = sum(4 * 2 * 256 for _ in ("h", "c"))  # float32 [2, 1, 256] each
    memory = told["codec"]["memory_bytes"] + told["head"]["memory_bytes"]
    assert told["row_bytes"] == states + memory
    assert told["arena_bytes"] == 1001 * states  # slot 0 is scratch
    assert told["memory_bytes"] == 1001 * memory
    assert told["file_bytes"] == (shipped / "1" / "model.onnx").stat().st_size
    assert main(["inspect", str(shipped)]) == 0
    table = capsys.readouterr().out
    for word in (
        "python-reference/1",
        told["digest"],
        told["snapshot_digest"],
        "h -> h_next",
        "generate",
        "4,096 slots",
    ):
        assert word in table


def test_running_a_model_writes_nothing_anywhere(shipped: Path, tmp_path: Path) -> None:
    """Nor does it report to anybody: onnxruntime's own telemetry would leave its files here."""
    places = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")}
    program = f"from services.cli import main; raise SystemExit(main(['doctor', '--model', {str(shipped)!r}]))"
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", program], env={**env, **places}, check=True, stdout=subprocess.DEVNULL)
    assert list(tmp_path.iterdir()) == []


def test_doctor_runs_the_model_and_tells_what_fails(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", str(shipped), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {f["what"]: f for f in told["findings"]}
    assert told["ok"]
    assert found["model"]["detail"] == "python-reference/1 runs on CPUExecutionProvider"
    assert "CPUExecutionProvider" in found["providers"]["detail"]

    assert main(["doctor", "--model", str(shipped), "--providers", "NoSuchProvider"]) == 1
    assert "!!  model" in capsys.readouterr().out
    assert main(["doctor", "--bootstrap-servers", "127.0.0.1:1"]) == 1
    assert "!!  broker" in capsys.readouterr().out
