"""The command: one JSON object or a table, and an exit code that says how it ended."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli import build_parser, main
from tests.unit.export.adopt.graphs import Maker, elman, lstm


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["adopt", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_json_is_one_object(tmp_path, capsys):
    file = lstm(tmp_path, ["t", "b", 8], [1, "b", 16])
    code, out, _ = run(capsys, str(file), "--output", str(tmp_path / "models/mine/2"), "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["model"], result["time_axis"], result["hop"], result["batching"]) == ("mine/2", 0, 1, "batched")
    assert {"inputs", "states", "constants", "parity"} <= set(result)
    assert [(s["input"], s["output"], s["batch_axis"], s["shape"]) for s in result["states"]] == [
        ("h", "hn", 1, [1, 1, 16]),
        ("c", "cn", 1, [1, 1, 16]),
    ]


def test_a_table_for_a_person_and_inspect_afterwards(tmp_path, capsys):
    m = Maker()
    for name, dims in (("x", ["b", 6]), ("gain", []), ("h", ["b", 6])):
        m.give(name, dims)
    m.op("Add", m.op("Mul", "h", m.value(0.5)), m.op("Mul", "x", "gain"), out="hn")
    m.op("Tanh", "hn", out="y")
    m.show("y", ["b", 6])
    m.show("hn", ["b", 6])
    output = str(tmp_path / "models/mine/1")
    code, out, _ = run(capsys, str(m.save(tmp_path)), "--output", output, "--constant", "gain=0.25", "--single")
    assert code == 0
    assert "h -> hn" in out
    assert "next: eddy run --model" in out
    assert main(["inspect", output]) == 0
    shown = capsys.readouterr().out
    for words in ("one stream a call", "gain", "= 0.25", "no batch axis"):
        assert words in shown


def test_a_refusal_is_an_object_too_and_the_exit_code_is_not_zero(tmp_path, capsys):
    m = Maker()
    m.give("x", ["b", 6])
    m.op("Tanh", "x", out="y")
    m.show("y", ["b", 6])
    file = str(m.save(tmp_path))
    code, out, _ = run(capsys, file, "--output", str(tmp_path / "models/mine/1"), "--json")
    assert code == 1
    assert "no input comes back" in json.loads(out)["refused"]
    code, out, err = run(capsys, file, "--output", str(tmp_path / "models/mine/1"))
    assert code == 1
    assert not out
    assert "is refused: no input comes back" in err
    assert not (tmp_path / "models").exists()


def test_a_question_has_the_whole_flags(tmp_path, capsys):
    file = str(elman(tmp_path, ("a", "b", "p", "q"), 10))
    output = str(tmp_path / "models/mine/1")
    code, out, _ = run(capsys, file, "--output", output, "--json")
    said = json.loads(out)
    assert code == 2
    assert said["flags"] == ["--step a --state b=q"] or said["flags"] == ["--step a --state b=p"]
    assert said["flags"][0] in said["refused"]
    code, out, _ = run(capsys, file, "--output", output, "--json", *said["flags"][0].split())
    assert code == 0
    assert json.loads(out)["batching"] == "batched"


@pytest.mark.parametrize(
    ("file", "message"),
    [("missing.onnx", "cannot read {}: No such file or directory"), ("no.onnx", "{}: not a readable ONNX model (")],
)
def test_a_file_that_is_none_is_one_line(tmp_path, capsys, file, message):
    (tmp_path / "no.onnx").write_bytes(b"no model")
    code, _, err = run(capsys, str(tmp_path / file), "--output", str(tmp_path / "m/1"))
    assert code == 2
    assert len(err.splitlines()) == 1
    assert err.startswith(f"eddy: {message.format(tmp_path / file)}")


def test_it_needs_no_torch(tmp_path):
    file = elman(tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None; from services.cli import main;"
        f"sys.exit(main(['adopt', {str(file)!r}, '--output', {str(tmp_path / 'm/1')!r}]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_pages_commands_and_flags_are_there():
    page = (Path(__file__).parents[4] / "docs" / "adopt.md").read_text(encoding="utf-8")
    shell = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).splitlines()
    parser = build_parser()
    for line in shell:
        parser.parse_args(shlex.split(line)[1:])
    with pytest.raises(SystemExit):
        parser.parse_args(["adopt", "x.onnx", "--output", "m/1", "--no-such-flag"])
    for flag in sorted(set(re.findall(r"--[a-z][a-z-]+", page)) - {"--input", "--model", "--json"}):
        given = {"--hop": "1", "--time-axis": "none", "--tolerance": "1"}.get(flag, "a=1")
        words = [flag] if flag == "--single" else [flag, given]
        parser.parse_args(["adopt", "x.onnx", "--output", "m/1", *words])


@pytest.mark.parametrize("default", [True, False])
def test_doctor_runs_what_it_has_the_constants_for(tmp_path, capsys, default):
    m = Maker()
    for name, dims in (("x", ["b", 6]), ("gain", ["b", 1]), ("h", ["b", 6])):
        m.give(name, dims)
    m.op("Add", m.op("Mul", "h", m.value(0.5)), m.op("Mul", "x", "gain"), out="hn")
    m.op("Tanh", "hn", out="y")
    m.show("y", ["b", 6])
    m.show("hn", ["b", 6])
    output = str(tmp_path / "models/mine/1")
    words = ["--stream-constant", "gain", *(["--constant", "gain=0.25"] if default else [])]
    assert run(capsys, str(m.save(tmp_path)), "--output", output, *words)[0] == 0
    main(["doctor", "--model", output])
    shown = capsys.readouterr().out
    assert ("mine/1 runs on" if default else "needs what the record header eddy-gain says") in shown
