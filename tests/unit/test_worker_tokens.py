"""Streams of a tokenizer's tokens over the transport in memory: cut anywhere, ended, and shared with others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.memory import fit_memory
from pipeline.beside import Beside, entry
from pipeline.contract import CodecSpec
from pipeline.model_file import load_graph, read_contract, write_contract
from pipeline.transport.memory import MemoryBroker
from tests.models import rolling_hash, rolling_hash_reference
from tests.tokenizations import CORPUS, tokenizer_file
from tests.unit.test_token_codec import whole
from tests.unit.test_worker import counted, made, new_broker, outputs, partition_of, running, until

KIND = "byte-level"


def served(folder: Path, **settings: object) -> Path:
    """A model whose outputs are a hash of all tokens so far."""
    file = rolling_hash(folder)
    shutil.copy(tokenizer_file(KIND), folder / "tokenizer.json")
    graph = load_graph(file)
    tokenizer = entry("tokenizer.json", tokenizer_file(KIND).read_bytes())
    codec = CodecSpec("text", settings={"unit": "tokens", "tokenizer": tokenizer, "cut": "whitespace", **settings})
    contract = replace(read_contract(graph, "hash"), codec=codec)
    write_contract(graph, fit_memory(contract, Beside(folder)))
    onnx.save(graph, str(file))
    return file


def produce(broker: MemoryBroker, key: bytes, value: bytes | None) -> None:
    broker.produce("in", partition_of(key), key, value)


@pytest.mark.parametrize("settings", [{"max_batch": 1}, {"engine_threads": 2}])
async def test_an_ended_stream_has_given_an_output_for_every_token_of_its_text(tmp_path, settings):
    """Records are cut at random, many of them inside characters; a key is used again after its stream's end."""
    rng = np.random.default_rng(5)
    broker = new_broker()
    texts = {b"stream-%d" % i: [CORPUS[i * 7 :][: 40 + 17 * i], CORPUS[i:][:9]] for i in range(12)}
    for turn in range(2):
        rest = {key: two[turn].encode() for key, two in texts.items()}
        while rest:
            key = list(rest)[rng.integers(len(rest))]
            size = int(rng.integers(0, 9))
            produce(broker, key, rest[key][:size])
            rest[key] = rest[key][size:]
            if not rest[key]:
                produce(broker, key, None)
                del rest[key]
    worker, _ = made(broker, served(tmp_path / "1", flush="boundary"), **settings)
    expected = {
        key: [h for text in two for h in rolling_hash_reference(np.array(whole(KIND, text))).tolist()]
        for key, two in texts.items()
    }
    async with running(worker) as task:
        await until(broker, task, lambda: sum(map(len, outputs(broker).values())) == sum(map(len, expected.values())))
    assert outputs(broker) == expected
    assert broker.records("in.dlq") == []


async def test_record_by_record_every_text_is_answered_whole(tmp_path):
    broker = new_broker()
    texts = ["the cat", "the cat", "sat on", "the mat's"]
    for text in texts:
        produce(broker, b"k", text.encode())
    worker, _ = made(broker, served(tmp_path / "1", flush="record"))
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == len(texts))
    tokens = [t for text in texts for t in whole(KIND, text)]
    assert outputs(broker) == {b"k": rolling_hash_reference(np.array(tokens)).tolist()}


async def test_a_changed_tokenizer_is_refused_before_anything_is_read(tmp_path):
    file = served(tmp_path / "1")
    (file.parent / "tokenizer.json").write_text("{}")
    with pytest.raises(Exception, match=r"tokenizer.json is not the file that the model was exported with"):
        made(new_broker(), file)
