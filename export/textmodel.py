"""From a run of `eddy train text` to a served model: codec, head, the held-out score, and the card."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from export.card import CardText, write_card
from export.exporter import Exported, ExportOptions, export_module
from export.nets import TextNet
from export.text import BREAK, Alphabet, Corpus, load_corpus, xz_bits_per_character
from export.training import load_text_net
from pipeline.contract import CodecSpec, HeadSpec, StepInput
from pipeline.errors import ConfigError
from pipeline.model_file import load_graph, read_contract

GENERATE = {"max_steps": 200, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 0, "stop": [], "end_token": None}
"""The head's settings where a prompt's headers say nothing else."""

NAMES = {"elman": "Elman", "lstm": "LSTM", "gru": "GRU"}


def export_text(
    checkpoint: Path, output: Path, command: str, settings: dict[str, Any], options: ExportOptions
) -> Exported:
    """Exports the best weights of a run and scores them on the run's held-out text, with onnxruntime.

    ``command`` builds it again; ``settings`` change the head's. Raises ConfigError when the text that the run was
    trained on is no longer the same.
    """
    net, saved = load_text_net(checkpoint)
    alphabet = Alphabet(saved["alphabet"])
    corpus = load_corpus(saved["data"])
    if corpus.digest != saved["digest"]:
        raise ConfigError(
            f"{checkpoint}: trained on {saved['source']}, which is not what {saved['data']} holds now;"
            " train again (another Python has other topics)"
        )
    exported = export_module(
        net,
        output,
        StepInput("tokens", "int64"),
        codec=CodecSpec("text", settings=alphabet.settings()),
        head=HeadSpec("generate", output="logits", settings={**GENERATE, **settings}),
        options=options,
    )
    bits = score_model(exported.file, corpus.held_out)
    card = _card(net, saved, corpus, bits, command)
    write_card(output / "README.md", exported.contract, exported.parity, exported.file.stat().st_size, card)
    return exported


def _card(net: TextNet, saved: dict[str, Any], corpus: Corpus, bits: float, command: str) -> CardText:
    shape, schedule, progress = net.shape, saved["schedule"], saved["progress"]
    weights = sum(p.numel() for p in net.parameters())
    unit = "byte" if saved["alphabet"] is None else "character"
    layers = f"{shape.layers} {NAMES[shape.kind]} layer{'s' * (shape.layers > 1)} of {shape.units} units"
    return CardText(
        summary=(
            f"Goes on with a text, one {unit} after the other: an embedding of {shape.embedding}, {layers},"
            f" {weights:,} weights."
        ),
        data=(
            f"{saved['source']}; licence {saved['licence']}. {len(corpus.train):,} characters to train on,"
            f" {len(corpus.develop):,} for development, {len(corpus.held_out):,} held out."
        ),
        training=(
            f"Truncated back-propagation over {schedule['window']} steps with carried state, {schedule['lanes']} lanes,"
            f" {progress['epoch']} epochs, AdamW {schedule['learning_rate']:g} with half a cosine, dropout"
            f" {shape.dropout:g}, gradient norm at most {schedule['clip']:g}, seed {schedule['seed']};"
            f" {progress['cpu_seconds'] / 60:.1f} minutes of processor time in {progress['seconds'] / 60:.1f} minutes,"
            f" torch threads: {saved['threads']}. The weights are those of the epoch"
            f" with the least loss on the development text."
        ),
        metrics=(
            ("bits per character, held out (onnxruntime, one stream from the initial state)", f"{bits:.4f}"),
            ("bits per character, held out, `xz -9e` given the rest", f"{xz_bits_per_character(corpus):.4f}"),
            ("bits per character, development (least)", f"{progress['best_bits']:.4f}"),
            ("bits per character, training (last epoch, with dropout)", f"{progress['curve'][-1][2]:.4f}"),
        ),
        licence=f"Apache-2.0, as Eddy; the training text is under {saved['licence']}.",
        command=command,
    )


def score_model(file: Path, text: str, chunk: int = 2000) -> float:
    """Bits per character of a text as one stream from the initial state, by the exported graph alone."""
    contract = read_contract(load_graph(file), str(file))
    vocabulary = contract.codec.settings.get("vocabulary")
    alphabet = Alphabet(None if vocabulary is None else tuple(vocabulary))
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    states = {s.input: np.zeros(s.shape, s.dtype) for s in contract.states}
    tokens = alphabet.encode(BREAK + text)
    nats = 0.0
    for at in range(0, len(tokens) - 1, chunk):
        wanted = tokens[at + 1 : at + chunk + 1]
        given = tokens[at : at + len(wanted), None]
        logits, *after = session.run(["logits", *(s.output for s in contract.states)], {"tokens": given, **states})
        states = {s.input: a for s, a in zip(contract.states, after)}
        rows = logits[:, 0].astype(np.float64)
        peak = rows.max(axis=1, keepdims=True)
        total = np.log(np.exp(rows - peak).sum(axis=1)) + peak[:, 0]
        nats += float((total - rows[np.arange(len(wanted)), wanted]).sum())
    return (nats / math.log(2) + alphabet.hidden_bits(text)) / len(text)
