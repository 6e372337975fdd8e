"""The whole way from a file to a model folder; read from top to bottom, it is the package's list of questions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from export.adopt.batch import Batches
from export.adopt.constants import Guess, given_value, guess, guessed
from export.adopt.edges import Plan, build, contract_of, plan
from export.adopt.file import DRAWS, Array, File, ops, read_file, require
from export.adopt.lifting import Lifted, lift
from export.adopt.names import matches, sounds_like_state
from export.adopt.pairing import Pairs, Said, find_pairs, swaps
from export.adopt.proof import Proof, prove
from export.adopt.runs import Bench
from export.adopt.sequence import Timing, find_timing, keeps_time
from export.adopt.triton import Config, find_config, read_config
from export.adopt.verdict import Fails, Refused, Unclear
from export.files import write_whole
from export.measure import HALF_TOLERANCE
from export.memory import fit_memory
from pipeline.beside import Beside
from pipeline.contract import CodecSpec, Contract, HeadSpec
from pipeline.errors import ConfigError
from pipeline.model_file import write_contract


@dataclass(frozen=True)
class AdoptOptions:
    """What may be said about a file; every default is found out, or asked for."""

    states: Sequence[str] = ()
    """``INPUT=OUTPUT``."""
    steps: Sequence[str] = ()
    """Inputs that are steps."""
    constants: Sequence[str] = ()
    """``INPUT=VALUE``: numbers, JSON lists, ``@FILE.npy``."""
    stream_constants: Sequence[str] = ()
    """``INPUT`` or ``INPUT=HEADER``; the header is else ``eddy-INPUT``. A ``constants`` entry is then its default."""
    initial: Sequence[str] = ()
    """``INPUT=VALUE``: how a state of a new stream begins; else the file's own default, else zeros."""
    shapes: Sequence[str] = ()
    """``INPUT=1,512``: one step of one stream."""
    hop: int | None = None
    time_axis: str = "auto"
    """``auto``, ``none``, or the axis of the step inputs."""
    single: bool = False
    """One stream at a time, whatever a batch could do."""
    tolerance: float | None = None
    """Relative; None: 1e-4, or 5e-3 where anything is float16."""
    codec: CodecSpec = field(default_factory=lambda: CodecSpec("tensor"))
    head: HeadSpec = field(default_factory=lambda: HeadSpec("tensor"))
    beside: Mapping[str, Path] = field(default_factory=dict)
    """Name -> where it is now, of each file that a setting of codec or head names; it is copied beside model.onnx."""
    notes: tuple[str, ...] = ()
    """What else the user should know."""


@dataclass(frozen=True)
class Adopted:
    """A file that was adopted, proven and written."""

    source: Path
    file: Path
    contract: Contract
    plan: Plan
    proof: Proof
    notes: tuple[str, ...] = ()


@dataclass
class _Given:
    """The options and the configuration beside the file, read against its ports."""

    said: Said
    constants: dict[str, Array]
    headers: dict[str, str]
    initial: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]
    notes: list[str]


def adopt(source: Path | str, output: Path | str, options: AdoptOptions | None = None) -> Adopted:
    """Adopts ``source`` into the folder ``output``, ``.../NAME/VERSION`` or, for version 1, ``.../NAME``.

    Raises ConfigError for what is asked wrongly, Unclear for what must be said, Refused (a ModelError) for what cannot
    be served right or is not proven; nothing is written then.
    """
    options = options or AdoptOptions()
    folder = Path(output)
    label = _label(folder)
    file = read_file(Path(source))
    given = _read_options(file, options)
    bench, guesses = _bench(file, given, options)
    pairs = find_pairs(bench, given.said)
    _no_draws(bench)
    tolerance = options.tolerance if options.tolerance is not None else _tolerance(file, pairs)
    pairs = _settled(bench, pairs, tolerance or 1e-4)
    timing = find_timing(bench, pairs, tolerance or 1e-4, options.hop, options.time_axis)
    timing = _same_for_all_steps(file, bench, pairs, timing, given, guesses)
    _ask(guesses, pairs, timing)
    initial = _initial(file, bench, pairs, given)
    streamed = [*bench.shapes, *given.headers]
    for name in given.headers:
        bench.shapes[name] = bench.constants[name].shape
    batches = Batches(bench, pairs, timing, streamed, tolerance)
    lifted = lift(batches, not options.single)
    made = _proven(bench, pairs, timing, lifted, initial, given, label, options, tolerance)
    the_plan, contract, model, proof, notes = made
    notes = [*options.notes, *given.notes, *pairs.notes, *timing.notes, *notes]
    written = _write(folder, model, options.beside)
    adopted = Adopted(Path(source), written, contract, the_plan, proof, tuple(dict.fromkeys(notes)))
    from export.adopt.report import write_card

    write_card(adopted)
    return adopted


def _label(folder: Path) -> tuple[str, str]:
    """The model's name and version, of its folder. Raises ConfigError."""
    name, version = (folder.parent.name, folder.name) if folder.name.isdigit() else (folder.name, "1")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ConfigError(
            f"--output {folder}: the name {name!r} may have letters, digits, '.', '_' and '-' (topics are named after"
            " it), as in models/my-model/1"
        )
    return name, version


def _read_options(file: File, options: AdoptOptions) -> _Given:
    config = None
    beside = find_config(file.path)
    if beside is not None:
        config = read_config(beside, file)
    config = config or Config(file.path)
    notes = [f"state pairs are read from {config.path}"] if config.states else []
    states = dict(config.states)
    for text in options.states:
        name, _, out = text.partition("=")
        if name in file.optional:
            require(file, name)
        _known(file.inputs, name, f"--state {text}", "input")
        _known(file.outputs, out, f"--state {text}", "output")
        states[name] = out
    for text in options.steps:
        _known(file.inputs, text, f"--step {text}", "input")
    constants = dict(config.constants)
    for text in options.constants:
        name, _, value = text.partition("=")
        _known(file.inputs, name, f"--constant {text}", "input")
        constants[name] = given_value(file.inputs[name], value, f"--constant {name}")
    headers = {}
    for text in options.stream_constants:
        name, _, header = text.partition("=")
        _known(file.inputs, name, f"--stream-constant {text}", "input")
        headers[name] = header or f"eddy-{name}"
    initial = dict(config.initial)
    for text in options.initial:
        name, _, value = text.partition("=")
        if name in file.optional:
            require(file, name)
        _known(file.inputs, name, f"--initial {text}", "input")
        initial[name] = given_value(file.inputs[name], value, f"--initial {name}")
    shapes = {}
    for text in options.shapes:
        name, _, dims = text.partition("=")
        _known(file.inputs, name, f"--shape {text}", "input")
        if not re.fullmatch(r"\d+(,\d+)*", dims) or len(dims.split(",")) != len(file.inputs[name].dims):
            raise ConfigError(f"--shape {text}: expected {name}=1,2,... with {len(file.inputs[name].dims)} numbers")
        shapes[name] = tuple(int(d) for d in dims.split(","))
    claimed = [n for n in [*options.steps, *constants, *headers] if n in states]
    if claimed:
        raise ConfigError(f"{claimed[0]} is said to be a state and something else: say it once")
    said = Said(
        states, frozenset(options.steps), bool(config.states), "from config.pbtxt" if config.states else "given"
    )
    return _Given(said, constants, headers, initial, shapes, notes)


def _known(there: Mapping[str, object], name: str, flag: str, kind: str) -> None:
    if name not in there:
        raise ConfigError(f"{flag}: the file has no {kind} {name!r}; it has {', '.join(there)}")


def _bench(file: File, given: _Given, options: AdoptOptions) -> tuple[Bench, list[Guess]]:
    """A bench with a first run. Optional inputs that come back by name are states, not weights."""
    for n, o in matches(file.optional, file.outputs).items():
        port, out = file.optional[n], file.outputs[o]
        if sounds_like_state(n) and port.dtype == out.dtype and len(port.dims) == len(out.dims):
            require(file, n)
    claimed = set(matches(file.inputs, file.outputs)) | set(given.said.states)
    settled = {**dict.fromkeys(given.said.steps), **given.constants, **dict.fromkeys(given.said.states)}
    guesses = [g for g in guessed(file, settled, claimed) if g.name not in given.headers]
    own = {n: guess(file, file.inputs[n]) for n in given.headers}
    constants = {**{g.name: g.value for g in (*guesses, *own.values())}, **given.constants}
    for name in set(own) & set(given.shapes):
        constants[name] = np.broadcast_to(constants[name].reshape(-1)[:1], given.shapes[name]).copy()
    bench = Bench.of(file, constants)
    shapes = {**{n: v.shape for n, v in given.initial.items() if v.ndim == len(file.inputs[n].dims)}, **given.shapes}
    bench.find_base(shapes, options.hop)
    for name, guessed_one in own.items():
        known = [given.constants[name]] if name in given.constants else guessed_one.likely
        bench.find_stream_constant(name, known)
    return bench, guesses


def _no_draws(bench: Bench) -> None:
    """Raises Refused for a graph that gives something else when asked again."""
    for seed in range(3):
        feed = bench.feed(np.random.default_rng(70 + seed))
        first, again = bench.run(feed), bench.run(feed)
        for o in first:
            if not np.array_equal(first[o], again[o], equal_nan=first[o].dtype.kind == "f"):
                drawn = ops(bench.file.model, DRAWS)
                why = f" ({', '.join(drawn)})" if drawn else ""
                raise Refused(
                    f"two runs of the same step give another {o}: the graph draws at random{why}, and what is replayed"
                    " after a crash would not be what was"
                )


def _tolerance(file: File, pairs: Pairs) -> float | None:
    """Half precision anywhere between inputs and outputs is all that can be promised."""
    dtypes = [p.dtype for p in (*file.inputs.values(), *file.outputs.values())]
    return HALF_TOLERANCE if "float16" in dtypes else None


def _settled(bench: Bench, pairs: Pairs, tolerance: float) -> Pairs:
    """States of one shape may be taken for each other: only the right pairs keep whole sequences step by step."""
    if keeps_time(bench, pairs.states, tolerance):
        return replace(pairs, question=None)
    right = [states for states in swaps(bench, pairs) if keeps_time(bench, states, tolerance)]
    if len(right) != 1:
        return pairs
    moved = {n: o for n, o in right[0].items() if pairs.states[n] != o}
    said = ", ".join(f"{n} comes back as {o}" for n, o in moved.items())
    notes = [*pairs.notes, f"only so is a whole sequence the same step by step: {said}"]
    how = {**pairs.how, **dict.fromkeys(moved, "by running it")}
    return replace(pairs, states=right[0], how=how, notes=notes, question=None)


def _same_for_all_steps(
    file: File, bench: Bench, pairs: Pairs, timing: Timing, given: _Given, guesses: list[Guess]
) -> Timing:
    """Inputs without a time axis where others have one: constants, unless the user says that they are steps."""
    flat = [n for n in bench.shapes if timing.axes and n not in timing.axes and n not in pairs.states]
    if not flat:
        return timing
    if set(flat) <= given.said.steps:
        note = f"{', '.join(flat)} has no time axis, so a call has one step"
        return replace(timing, axes={}, outputs={}, notes=(*timing.notes, note))
    guesses += [guess(file, file.inputs[n]) for n in flat if n not in given.said.steps]
    return timing


def _ask(guesses: list[Guess], pairs: Pairs, timing: Timing) -> None:
    questions = [g.question for g in guesses]
    if pairs.question is not None:
        questions.append(pairs.question)
    if timing.question is not None:
        questions.append(timing.question)
    if questions:
        raise Unclear(questions)


def _initial(file: File, bench: Bench, pairs: Pairs, given: _Given) -> dict[str, Array]:
    found = {}
    for n in pairs.states:
        value = given.initial.get(n)
        if value is None:
            value = file.inputs[n].default
        if value is None:
            continue
        if value.size != int(np.prod(bench.shapes[n])):
            raise ConfigError(
                f"--initial {n}: {value.size} values for a state of shape {list(bench.shapes[n])} a stream"
            )
        found[n] = np.asarray(value, file.inputs[n].dtype).reshape(bench.shapes[n])
    return found


def _proven(
    bench: Bench,
    pairs: Pairs,
    timing: Timing,
    lifted: Lifted,
    initial: dict[str, Array],
    given: _Given,
    label: tuple[str, str],
    options: AdoptOptions,
    tolerance: float | None,
) -> tuple[Plan, Contract, onnx.ModelProto, Proof, list[str]]:
    """The most that holds: as found, else one stream a call, else also one step a call."""
    notes = []
    if lifted.axes is None:
        notes.append(f"one stream at a time: {lifted.reason}")
    single = Lifted("single", bench.file.model, None, "")
    alone = replace(timing, axes={}, outputs={})
    tries = [(lifted, timing), (lifted, alone), (single, timing), (single, alone)]
    known = {n: v for n, v in bench.constants.items() if n not in given.headers or n in given.constants}
    reason = ""
    seen: set[tuple[bool, bool]] = set()
    for lift_, time in tries:
        key = (lift_.axes is None, bool(time.axes))
        if key in seen:
            continue
        seen.add(key)
        if reason:
            how = " and ".join(["one stream"] * (lift_.axes is None) + ["one step"] * (not time.axes))
            notes.append(f"{how} a call: {reason}")
        the_plan = plan(bench, pairs, time, lift_, initial, given.headers, known)
        contract = fit_memory(
            contract_of(bench, the_plan, *label, options.codec, options.head), Beside(files=options.beside)
        )
        model = build(the_plan, contract)
        try:
            write_contract(model, contract, contract.label)
            proof = prove(bench, the_plan, model, contract, tolerance)
        except Fails as fails:
            reason = reason or f"it does not run otherwise ({fails})"
            continue
        worst = proof.worst
        if worst.excess > 1:
            reason = f"{worst.what}: {worst.where} differs by {max(worst.outputs, worst.states):.3g}"
            continue
        if not any(size > 0 for _, size in proof.matters):
            raise Refused(
                f"no state changes what follows ({', '.join(pairs.states)}): the graph ignores what it is given back;"
                " if other inputs are the states, name them with --state INPUT=OUTPUT"
            )
        idle = [name for name, size in proof.matters if size == 0]
        notes += [f"state {name} changed nothing that followed in the proof" for name in idle]
        return the_plan, contract, model, proof, notes
    raise Refused(f"not proven: {reason}")


def _write(folder: Path, model: onnx.ModelProto, beside: Mapping[str, Path]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in beside.items():
        write_whole(folder / name, path.read_bytes())
    write_whole(folder / "model.onnx", model.SerializeToString())
    return folder / "model.onnx"
