"""One call from a PyTorch module to a proven model folder, ``NAME/VERSION/model.onnx`` with its card.

What the module shows when it runs is derived: states, outputs, batch axes, initial values, and whether several steps
may go in one call. What it cannot show is asked for: a step's dtype and shape, labels, codec and head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
from torch import nn

from export.card import CardText, write_card
from export.files import write_whole
from export.graph import to_onnx
from export.measure import tolerance_of
from export.memory import fit_memory
from export.parity import Parity, prove, prove_stored
from export.probe import LAYOUTS, Layout, Misfit, Subject, find_layout, outputs_of, steps_name, subject
from export.quantise import store_weights
from export.spec import parse_step
from pipeline.beside import Beside
from pipeline.codecs.tokenizer import Tokenization
from pipeline.contract import CodecSpec, Contract, HeadSpec, StepInput
from pipeline.errors import ConfigError, ModelError
from pipeline.model_file import write_contract

MEGABYTE = 1_000_000
STEP_LIMITS = {"audio": 32768, "video": 256}
"""Whole-number samples and pixels are tried over all their range."""


@dataclass(frozen=True)
class Exported:
    """A model that was written and proven."""

    file: Path
    contract: Contract
    parity: Parity
    notes: tuple[str, ...] = ()
    """What the maker should know although the proof passed, a sentence each."""


@dataclass(frozen=True)
class ExportOptions:
    """What may be said about an export; every default is derived or harmless."""

    state_names: Sequence[str] = ()
    output_names: Sequence[str] = ()
    step_limit: int | None = None
    """Whole-number steps are tried below it; None: the codec's range, the size of the first embedding, else 100."""
    time_axis: str = "auto"
    """``auto``, ``0``, ``1`` or ``none``: where the module has its time axis."""
    tolerance: float | None = None
    """Relative; None: 1e-4, or 5e-3 where anything is float16."""
    max_megabytes: float = 200.0
    precision: str = "float32"
    """Of the weights in the file: ``float32``, ``float16`` or ``int8`` (``quantise.py``). Buffers stay as they are."""
    beside: Mapping[str, Path] = field(default_factory=dict)
    """Name -> where it is now, of each file that a setting of codec or head names; it is copied beside model.onnx."""
    notes: tuple[str, ...] = ()
    """What else the maker should know, said before what the proof has to say."""
    card: CardText = field(default_factory=CardText)


def export_module(
    module: nn.Module,
    output: Path | str,
    steps: str | StepInput | Sequence[str | StepInput],
    *,
    codec: CodecSpec | str = "tensor",
    head: HeadSpec | str = "tensor",
    options: ExportOptions | None = None,
) -> Exported:
    """Exports ``module`` (`forward(steps, *states) -> (outputs, *states)`, `initial_state(batch)`) to ``output``.

    ``output``: folder ``.../NAME/VERSION`` with a whole-number version. ``steps``: one step's dtype and shape, as in
    ``"float32[64]"`` or ``"tokens:int64"``; several where `forward` takes a tuple of steps. The module is put into eval
    mode and on the CPU, and left there.

    Raises ConfigError for what is asked wrongly, ContractError for codec or head settings, and ModelError when the
    module cannot be exported or the graph does not do what the module does; nothing is written then.
    """
    options = options or ExportOptions()
    folder = Path(output)
    if not folder.name.isdigit() or not folder.parent.name:
        raise ConfigError(
            f"--output {folder}: expected NAME/VERSION with a whole-number version, as in models/my-model/1"
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]+", folder.parent.name):
        raise ConfigError(
            f"--output {folder}: the name {folder.parent.name!r} may have letters, digits, '.', '_' and '-' (topics are"
            " named after it)"
        )
    given = [steps] if isinstance(steps, (str, StepInput)) else list(steps)
    first = steps_name(module)
    inputs = tuple(
        parse_step(s, first if len(given) == 1 else f"{first}_{i}") if isinstance(s, str) else s
        for i, s in enumerate(given)
    )
    kind = codec if isinstance(codec, str) else codec.kind
    limit = options.step_limit if options.step_limit is not None else STEP_LIMITS.get(kind)
    of = subject(module, inputs, limit, options.state_names)
    layout = find_layout(of, _wanted(options.time_axis))
    outputs = outputs_of(of, layout, options.output_names)
    dtypes = [t.dtype for t in inputs] + [t.dtype for t in of.states] + [t.dtype for t in outputs]
    tolerance = tolerance_of(dtypes, options.tolerance)
    contract = _named_apart(
        Contract(
            name=folder.parent.name,
            model_version=folder.name,
            steps=inputs,
            states=of.states,
            outputs=outputs,
            codec=CodecSpec(codec) if isinstance(codec, str) else codec,
            head=HeadSpec(head) if isinstance(head, str) else head,
            time_axis=layout.time_axis,
            batch_axis=layout.batch_axis,
        )
    )
    _ask(contract)
    _check_tokens(contract, options, of.step_limit)
    contract = fit_memory(contract, Beside(files=options.beside))
    model, contract, parity, notes = _prove_or_step(of, layout, contract, tolerance)
    model, parity = _stored(of, layout, model, contract, parity, options.precision)
    size = model.ByteSize()
    if size > options.max_megabytes * MEGABYTE:
        raise ModelError(
            f"the graph has {size / MEGABYTE:.1f} MB, more than {options.max_megabytes:g};"
            " raise --max-megabytes if that is meant"
        )
    write_contract(model, contract, contract.label)
    file = folder / "model.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in options.beside.items():
        write_whole(folder / name, path.read_bytes())
    write_whole(file, model.SerializeToString())
    write_card(folder / "README.md", contract, parity, file.stat().st_size, options.card)
    return Exported(file, contract, parity, (*options.notes, *notes))


def _stored(
    of: Subject, layout: Layout, model: onnx.ModelProto, contract: Contract, parity: Parity, precision: str
) -> tuple[onnx.ModelProto, Parity]:
    """The graph with its weights in ``precision``, proven to compute with what is stored."""
    buffers = {f"module.{name}" for name, _ in of.module.named_buffers()}
    small, stored = store_weights(model, precision, buffers)
    if not stored:
        return model, parity
    fitting = layout if contract.time_axis is not None else Layout(layout.time_axis, layout.batch_axis, stepwise=True)
    try:
        rows = prove_stored(of, fitting, model, small, contract, parity.tolerance, precision)
    except Misfit as misfit:
        raise ModelError(f"the graph with weights in {precision} does not do what it should: {misfit}") from None
    return small, replace(parity, rows=(*parity.rows, *rows))


def _wanted(time_axis: str) -> tuple[Layout, ...]:
    if time_axis == "auto":
        return LAYOUTS
    axes: dict[str, int | None] = {"0": 0, "1": 1, "none": None}
    if time_axis not in axes:
        raise ConfigError(f"--time-axis {time_axis!r}: expected auto, 0, 1 or none")
    return tuple(layout for layout in LAYOUTS if layout.time_axis == axes[time_axis])


def _ask(contract: Contract) -> None:
    """What codec and head need and no module shows. Raises ConfigError with the flag that says it."""
    head, outputs = contract.head, contract.outputs
    names = ", ".join(o.name for o in outputs)
    if head.kind in ("classify", "generate", "transcribe") and head.output is None and len(outputs) > 1:
        raise ConfigError(f"the head {head.kind} reads one of the outputs {names}: give --head-output NAME")
    if head.output is not None and head.output not in [o.name for o in outputs]:
        raise ConfigError(f"--head-output {head.output}: the module's outputs are {names}")
    if head.kind == "classify" and not head.labels:
        output = contract.output(head.output or outputs[0].name)
        raise ConfigError(
            f"the head classify needs a label for each class of output {output.name} {list(output.shape)}:"
            " give --labels A,B"
        )
    if head.kind == "transcribe" and not head.labels:
        output = contract.output(head.output or outputs[0].name)
        raise ConfigError(
            f"the head transcribe needs a label for each class of output {output.name} {list(output.shape)}, an empty"
            " one for the blank: give --labels @FILE (one a line)"
        )
    if head.kind == "transcribe" and "step_s" not in head.settings:
        raise ConfigError(
            "the head transcribe must know how long a step of the model is: give --head-setting step_s=SECONDS"
        )
    settings, shape = contract.codec.settings, contract.steps[0].shape
    if contract.codec.kind == "audio" and "rate" not in settings:
        raise ConfigError(
            "the codec audio must know how many samples a second the model hears: give --codec-setting rate=16000, say"
        )
    if contract.codec.kind == "video" and "layout" not in settings and len(shape) == 3:
        first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
        if first and not last:
            raise ConfigError(
                f"a step of {list(shape)} has its channels first: give --codec-setting layout=CHW, or take [H, W, C]"
            )
    if contract.codec.kind == "text" and "unit" not in contract.codec.settings:
        raise ConfigError(
            "the codec text must know what a token is: give --tokenizer tokenizer.json, or --codec-setting unit=bytes,"
            " or --codec-setting unit=characters with --codec-setting vocabulary=@FILE (a JSON list of characters, in"
            " the tokens' order)"
        )


def _check_tokens(contract: Contract, options: ExportOptions, step_limit: int) -> None:
    """A tokenizer has no token that the module does not take. Raises ConfigError."""
    if contract.codec.kind != "text" or contract.codec.settings.get("unit") != "tokens":
        return
    count = Tokenization.of(contract, Beside(files=options.beside)).count
    if count > step_limit:
        limit = "--step-limit" if options.step_limit is not None else "the size of its first embedding"
        raise ConfigError(
            f"the tokenizer has {count} tokens, the module takes steps below {step_limit} ({limit}): it is another"
            " model's, or --step-limit must say otherwise"
        )


def _named_apart(contract: Contract) -> Contract:
    """The same names for a state and an output are common in modules; a graph needs them apart."""
    taken = [s.name for s in contract.steps] + [o.name for o in contract.outputs]
    states = []
    for state in contract.states:
        name = state.input
        while name in taken or f"{name}_next" in taken:
            name = f"{name}_state"
        taken += [name, f"{name}_next"]
        states.append(replace(state, input=name, output=f"{name}_next"))
    return replace(contract, states=tuple(states))


def _prove_or_step(
    of: Subject, layout: Layout, contract: Contract, tolerance: float
) -> tuple[onnx.ModelProto, Contract, Parity, tuple[str, ...]]:
    """A Python loop over the steps is traced with its length frozen: then the graph takes one step at a time."""
    tries = [layout]
    if layout.time_axis is not None and not layout.stepwise:
        tries.append(Layout(layout.time_axis, layout.batch_axis, stepwise=True))
    reason, notes = "", []
    if layout.stepwise:
        notes.append("forward takes one step of a stream at a time, so a record of many steps takes as many calls")
    for one in tries:
        fitting = contract if one.many else replace(contract, time_axis=None, batch_axis=0)
        traced = to_onnx(of, one, fitting)
        try:
            parity = prove(of, one, traced.model, fitting, tolerance)
            notes += [
                f"tracing froze a value at {place}: it must not change from call to call" for place in traced.frozen
            ]
            return traced.model, fitting, parity, tuple(notes)
        except Misfit as misfit:
            frozen = f"; tracing froze a value at {', '.join(traced.frozen)}" if traced.frozen else ""
            reason = f"{misfit}{frozen}"
            notes.append(
                f"the graph takes one step of a stream at a time, because over several it does not hold ({reason})"
            )
    raise ModelError(f"the exported graph does not do what the module does: {reason}")
