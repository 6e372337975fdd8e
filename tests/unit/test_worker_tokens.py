"""Streams of a tokenizer's tokens over the transport in memory: cut anywhere, ended, and shared with others."""

from __future__ import annotations

import asyncio
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from export.memory import fit_memory
from pipeline.beside import Beside, entry
from pipeline.contract import CodecSpec
from pipeline.model_file import load_graph, read_contract, write_contract
from pipeline.transport.memory import MemoryBroker
from tests.models import rolling_hash, rolling_hash_reference
from tests.tokenizations import CORPUS, tokenizer_file
from tests.unit.test_token_codec import whole
from tests.unit.test_worker import counted, made, new_broker, outputs, partition_of, running, until
from tests.unit.test_worker_failures import breaks_at
from tests.unit.test_worker_generate import finished, prompt, talking

KIND = "byte-level"


def by_tokens(folder: Path, **settings: object) -> CodecSpec:
    shutil.copy(tokenizer_file(KIND), folder / "tokenizer.json")
    tokenizer = entry("tokenizer.json", tokenizer_file(KIND).read_bytes())
    return CodecSpec("text", settings={"unit": "tokens", "tokenizer": tokenizer, "cut": "whitespace", **settings})


def served(folder: Path, **settings: object) -> Path:
    """A model whose outputs are a hash of all tokens so far."""
    file = rolling_hash(folder)
    graph = load_graph(file)
    contract = replace(read_contract(graph, "hash"), codec=by_tokens(folder, **settings))
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


async def test_last_words_that_make_the_model_fail_are_a_dead_letter_and_the_stream_ends(tmp_path):
    """The null value that would make them steps is what fails; the key's next record begins a new stream."""
    beside, broker = Beside(tokenizer_file(KIND).parent), new_broker()
    cat = whole(KIND, " cat")[0]
    file = breaks_at(cat, tmp_path / "model.onnx", by_tokens(tmp_path, flush="boundary"), beside)
    for value in (b"the cat", None, b"the mat", None):
        produce(broker, b"k", value)
    produce(broker, b"other", b"the ")
    worker, _ = made(broker, file)
    the = whole(KIND, "the")
    mat = whole(KIND, "the mat")
    steps = 2 * len(the) + len(mat)
    async with running(worker) as task:
        await until(
            broker,
            task,
            lambda: sum(map(len, outputs(broker).values())) == steps and counted(broker, "in.dlq") == 1,
        )
    [(_, _, dead)] = broker.records("in.dlq")
    assert (dead.key, dead.value, dict(dead.headers)["eddy-error"]) == (b"k", None, b"engine")
    assert outputs(broker) == {b"k": hashed(the) + hashed(mat), b"other": hashed(the)}


def hashed(tokens: list[int]) -> list[int]:
    h, out = 0, []
    for token in tokens:
        h = 31 * h + token
        out.append(h)
    return out


PROMPTS = [(b"k%d" % (i % 5), f"the cat {i} sat, 日本 {'x' * i}") for i in range(12)]


def said(broker: MemoryBroker) -> dict[tuple[bytes, bytes], str]:
    """(key, eddy-source) -> text and how it ended, every piece of which is UTF-8; steps never go back."""
    got: dict[tuple[bytes, bytes], str] = defaultdict(str)
    steps: dict[tuple[bytes, bytes], int] = {}
    for _, _, e in broker.records("out"):
        headers = dict(e.headers)
        stream = (e.key, headers["eddy-source"])
        assert int(headers["eddy-step"]) >= steps.get(stream, 0)
        steps[stream] = int(headers["eddy-step"])
        got[stream] += e.value.decode()
        if "eddy-finish" in headers:
            got[stream] += f"[{headers['eddy-finish'].decode()}]"
    return got


async def generated(file: Path, *, lives: bool = False, **settings: object) -> dict[tuple[bytes, bytes], str]:
    """Every worker but the last is killed at some step, where there are ``lives``."""
    broker, rng = new_broker(), np.random.default_rng(8)
    for i, (key, text) in enumerate(PROMPTS):
        stop = b"at" if i % 2 else "日本".encode()
        prompt(broker, key, text, ("eddy-seed", b"3"), ("eddy-stop", stop))
    count = 0
    while lives and finished(broker) < len(PROMPTS):
        worker, _ = made(broker, file, f"w{count}", generate_flush_ms=0, **settings)
        task = asyncio.create_task(worker.run())
        enough = counted(broker) + int(rng.integers(1, 40))
        await until(broker, task, lambda n=enough: counted(broker) >= n or finished(broker) == len(PROMPTS))
        task.cancel()
        await asyncio.wait([task])
        count += 1
    assert (count > 5) == lives
    worker, _ = made(broker, file, **settings)
    async with running(worker) as task:
        await until(broker, task, lambda: finished(broker) == len(PROMPTS))
    return said(broker)


async def test_generations_are_the_same_beside_others_and_after_any_death(tmp_path):
    """Words, parts of characters and held beginnings of stop texts are all in the row."""
    size = len(Tokenizer.from_file(str(tokenizer_file(KIND))).get_vocab())
    file = talking(
        tmp_path / "model.onnx", size, by_tokens(tmp_path, flush="record"), Beside(tokenizer_file(KIND).parent)
    )
    alone = await generated(file, max_batch=1)
    assert len(alone) == len(PROMPTS)
    assert {text.rpartition("[")[2] for text in alone.values()} == {"stop]", "length]"}
    assert await generated(file, engine_threads=2) == alone
    assert await generated(file, lives=True) == alone
