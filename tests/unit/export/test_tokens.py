"""A tokenizer for a module of one's own: what is proven of it, what is refused, and what then is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from export.tokens import prove_cut, tokens_codec
from pipeline.beside import Beside
from pipeline.codecs import make_codec
from pipeline.errors import ConfigError
from pipeline.heads import make_head
from pipeline.model_file import load_graph, read_contract
from services.cli import main
from tests.tokenizations import KINDS, tokenizer_file
from tests.unit.test_token_codec import CUT, whole

MODULE = "tests.unit.export.modules"


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "word-level without unknown"])
def test_the_finest_cut_that_changes_nothing_is_found(kind: str) -> None:
    cut, example = prove_cut(Tokenizer.from_file(str(tokenizer_file(kind))))
    assert cut == {**CUT, "word-level": "whitespace"}.get(kind)
    assert bool(example) == (cut is None)


def test_how_a_record_ends_follows_from_the_tokenizer_and_the_head() -> None:
    for kind, head, flush in (
        ("byte-level", "classify", "boundary"),
        ("byte-level", "generate", "record"),
        ("byte-fallback", "classify", "record"),
    ):
        text = tokens_codec(tokenizer_file(kind), head=head)
        assert text.codec.settings["flush"] == flush
        assert bool(text.notes) == (head == "classify")
    assert tokens_codec(tokenizer_file("byte-level"), head="tensor").codec.settings["hold_bytes"] == 128
    asked = tokens_codec(tokenizer_file("unigram"), head="tensor", settings={"flush": "record", "hold_bytes": 9})
    assert (asked.codec.settings["flush"], asked.codec.settings["hold_bytes"]) == ("record", 9)


def refused(file: Path, **given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        tokens_codec(file, **given)
    return str(caught.value).removeprefix(f"--tokenizer {file}: ")


def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    assert refused(file) == "cannot be read (No such file or directory)"
    file.write_text('{"version": "1.0"}')
    assert refused(file).startswith("no tokenizer.json that tokenizers ")
    strict = tokenizer_file("word-level without unknown")
    assert refused(strict).startswith("fails on text that is not in its vocabulary (WordLevel error: Missing [UNK]")
    deaf = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    deaf.pre_tokenizer = pre_tokenizers.Whitespace()
    deaf.save(str(file))
    assert refused(file).startswith("text that is not in its vocabulary vanishes ('ꙮ' has no token)")
    message = refused(tokenizer_file("byte-fallback"), head="classify", settings={"flush": "boundary"})
    assert message.startswith("cutting a text changes its tokens (as in ")
    assert message.endswith("give --codec-setting flush=record, every record then being a text of its own")
    with pytest.raises(ConfigError, match="--codec-setting cut: with --tokenizer there are flush and hold_bytes"):
        tokens_codec(tokenizer_file("byte-level"), settings={"cut": "space"})


def test_a_decoder_that_needs_the_whole_text_cannot_write(tmp_path: Path) -> None:
    raw = json.loads(tokenizer_file("byte-level").read_text())
    raw["decoder"] = {
        "type": "Sequence",
        "decoders": [raw["decoder"], {"type": "Replace", "pattern": {"Regex": "n.t"}, "content": "not"}],
    }
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(raw))
    assert refused(file, head="generate").startswith("cannot be used to write")


def export(out: Path, kind: str, *words: object, size: int = 400) -> list[str]:
    return [
        *("export", f"{MODULE}:words_{size}", "--steps", "int64", "--output", str(out), "--codec", "text"),
        *("--tokenizer", str(tokenizer_file(kind)), *map(str, words)),
    ]


@pytest.mark.parametrize("head", ["generate", "tensor"])
def test_a_module_is_exported_with_its_tokenizer(tmp_path: Path, head: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "models" / "words" / "1"
    assert main(export(out, "byte-level", "--head", head)) == 0
    printed = capsys.readouterr().out
    assert ("note: a record's last word waits" in printed) == (head == "tensor")
    assert (out / "tokenizer.json").read_bytes() == tokenizer_file("byte-level").read_bytes()
    contract = read_contract(load_graph(out / "model.onnx"), "words")
    codec = make_codec(contract, Beside(out))
    assert make_head(contract, Beside(out)).generates == (head == "generate")
    memory = np.zeros((2, codec.memory_bytes), np.uint8)
    steps = codec.decode([b"the cat sat on"], np.array([1]), memory)
    seen = "the cat sat on" if head == "generate" else "the cat sat"
    assert steps.values[0].tolist() == whole("byte-level", seen)
    card = (out / "README.md").read_text()
    assert ("every record by itself" if head == "generate" else "a record's last word waits for the next") in card


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "models" / "words" / "1"
    assert main(export(out, "byte-level", size=100)) == 2
    assert capsys.readouterr().err.startswith(
        "eddy: the tokenizer has 340 tokens, the module takes steps below 100 (the size of its first embedding)"
    )
    words = export(out, "byte-level")
    words[words.index("text")] = "tensor"
    assert main(words) == 2
    assert "is for the codec text: give --codec text" in capsys.readouterr().err
    assert not out.exists()


def test_an_adopted_file_takes_a_tokenizer_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    made, out = tmp_path / "models" / "words" / "1", tmp_path / "models" / "theirs" / "1"
    assert main(export(made, "byte-level", "--head", "generate")) == 0
    plain = load_graph(made / "model.onnx")
    del plain.metadata_props[:]
    theirs = tmp_path / "theirs.onnx"
    onnx.save(plain, str(theirs))
    words = ["adopt", str(theirs), "--output", str(out), "--codec", "text"]
    words += ["--tokenizer", str(tokenizer_file("byte-level"))]
    assert main(words) == 0
    assert "a record's last word waits" in capsys.readouterr().out
    contract = read_contract(load_graph(out / "model.onnx"), "theirs")
    assert make_codec(contract, Beside(out)).memory_bytes == contract.codec.memory_bytes
