"""What can be learnt of a user's module by running it: its states, its outputs, how it wants its steps laid out.

A module has ``initial_state(batch)`` (a tensor or a tuple) and ``forward(steps, *states) -> (outputs, *states)``
(outputs a tensor or a tuple). Steps are held time first here, ``[T, B, *shape]``, whatever the module wants.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from export.measure import same
from pipeline.contract import DTYPES, Output, State, StepInput
from pipeline.errors import ModelError

Tensors: TypeAlias = tuple[Tensor, ...]

BATCH, STEPS = 3, 5
"""Of the probing runs: different from each other and from one, so that axes can be told apart."""


@dataclass(frozen=True)
class Layout:
    """Where a module wants time and batch. ``stepwise``: it has a time axis, but takes only one step at a time."""

    time_axis: int | None
    batch_axis: int
    stepwise: bool = False

    @property
    def many(self) -> bool:
        """Whether one call may take several steps."""
        return self.time_axis is not None and not self.stepwise

    def give(self, steps: Tensor) -> Tensor:
        """``[T, B, ...]`` -> what the module takes; without a time axis T must be 1."""
        if self.time_axis is None:
            return steps[0]
        return steps if self.time_axis == 0 else steps.transpose(0, 1)

    def take(self, output: Tensor) -> Tensor:
        """What the module gives -> ``[T, B, ...]``."""
        if self.time_axis is None:
            return output[None]
        return output if self.time_axis == 0 else output.transpose(0, 1)

    def __str__(self) -> str:
        return {0: "[T, B, ...]", 1: "[B, T, ...]", None: "[B, ...]"}[self.time_axis]


LAYOUTS = (Layout(0, 1), Layout(1, 0), Layout(None, 0))


class Misfit(Exception):
    """The module does not take, or keep, this layout."""


class Unfit(Misfit):
    """It takes the layout, but no stream could be served so: what is wrong is the module."""


@dataclass
class Subject:
    """A module in eval mode, and how many things it takes."""

    module: nn.Module
    steps: tuple[StepInput, ...]
    step_limit: int
    states: tuple[State, ...]

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Whether two runs of the module agree."""
        return same(a, b, [s.dtype for s in self.steps] + [s.dtype for s in self.states])

    def initial(self, batch: int) -> Tensors:
        return as_tuple(self.module.initial_state(batch))  # type: ignore[operator]

    def call(self, steps: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[Tensors, Tensors]:
        """One call as the module wants it -> outputs, states. Raises Misfit for what `forward` raises."""
        given = steps[0] if len(self.steps) == 1 else tuple(steps)
        try:
            with torch.inference_mode():
                returned = self.module(given, *states)
        except ModelError:
            raise
        except Exception as error:
            raise Misfit(f"{type(error).__name__}: {first_line(error)}") from error
        return split(returned, len(self.states))

    def whole(self, layout: Layout, steps: Sequence[Tensor], states: Tensors) -> tuple[Tensors, Tensors]:
        """Steps ``[T, B, ...]`` in one call -> outputs ``[T, B, ...]``, states. Raises Misfit."""
        outputs, after = self.call([layout.give(s) for s in steps], states)
        lead = 1 if layout.time_axis is None else 2
        time, batch = steps[0].shape[:2]
        for i, output in enumerate(outputs):
            shape = tuple(output.shape)
            if len(shape) < lead:
                raise Misfit(f"output {i} has shape {list(shape)}, without time and batch axis")
            if layout.take(output).shape[:2] != (time, batch):
                raise Misfit(f"output {i} has shape {list(shape)} for {time} steps of {batch} streams")
        for state, before, now in zip(self.states, states, after):
            if before.dtype != now.dtype:
                raise ModelError(
                    f"state {state.input} is {name_of(before.dtype)} in initial_state and {name_of(now.dtype)} after a"
                    " step; return it in the dtype it came in"
                )
            if before.shape != now.shape:
                raise Misfit(f"state {state.input} has shape {list(before.shape)} before and {list(now.shape)} after")
        return tuple(layout.take(o) for o in outputs), after

    def stepped(self, layout: Layout, steps: Sequence[Tensor], states: Tensors) -> tuple[Tensors, Tensors]:
        """The same, one call a step."""
        rows = []
        for t in range(len(steps[0])):
            outputs, states = self.whole(layout, [s[t : t + 1] for s in steps], states)
            rows.append(outputs)
        return tuple(torch.cat(column) for column in zip(*rows)), states

    def run(self, layout: Layout, steps: Sequence[Tensor], states: Tensors) -> tuple[Tensors, Tensors]:
        return (self.whole if layout.many else self.stepped)(layout, steps, states)

    def sample(self, time: int, batch: int, seed: int) -> Tensors:
        """Steps to try it with, ``[time, batch, *shape]``."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(self._draw(s, (time, batch, *s.shape), generator) for s in self.steps)

    def _draw(self, step: StepInput, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        dtype = getattr(torch, step.dtype)
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        limit = 2 if step.dtype == "bool" else self.step_limit
        return torch.randint(0, limit, shape, generator=generator).to(dtype)


def steps_name(module: nn.Module) -> str:
    """What `forward` calls its steps: their name in the graph where none is given.

    Raises ModelError for a module that lacks what every served module has.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(f"{type(module).__name__} is compiled TorchScript: export the module that it was made from")
    if not callable(getattr(module, "initial_state", None)):
        raise ModelError(
            f"{type(module).__name__} has no initial_state(batch): add one that returns the state of `batch` new"
            " streams, a tensor or a tuple of tensors"
        )
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            return parameter.name
    return "steps"


def subject(module: nn.Module, steps: tuple[StepInput, ...], step_limit: int | None, names: Sequence[str]) -> Subject:
    """The module in eval mode on the CPU, with the states that its ``initial_state`` shows. Raises ModelError.

    ``step_limit``: whole-number steps are drawn below it; None: from the module's first embedding, else 100.
    """
    module.eval().cpu()
    if step_limit is None:
        sizes = [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)]
        step_limit = sizes[0] if sizes else 100
    return Subject(module, steps, step_limit, _states(module, names))


def _states(module: nn.Module, names: Sequence[str]) -> tuple[State, ...]:
    try:
        two, three = (as_tuple(module.initial_state(b)) for b in (2, 3))  # type: ignore[operator]
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - it is the user's code
        raise ModelError(f"initial_state failed: {type(error).__name__}: {first_line(error)}") from None
    if not two:
        raise ModelError("initial_state returned no tensor: a model without state needs no Eddy")
    names = _state_names(module, names, len(two))
    return tuple(_state(name, a, b) for name, a, b in zip(names, two, three, strict=True))


def _state(name: str, two: Tensor, three: Tensor) -> State:
    dtype = name_of(two.dtype)
    if dtype not in DTYPES:
        raise ModelError(f"state {name} is {dtype}: a state is one of {', '.join(DTYPES)}")
    axes = [i for i, (a, b) in enumerate(zip(two.shape, three.shape)) if a != b]
    if two.dim() != three.dim() or len(axes) != 1 or (two.shape[axes[0]], three.shape[axes[0]]) != (2, 3):
        raise ModelError(
            f"state {name} has shape {list(two.shape)} for 2 streams and {list(three.shape)} for 3: exactly one axis"
            " must be the number of streams"
        )
    axis = axes[0]
    rows = [t.select(axis, i) for t in (two, three) for i in range(t.shape[axis])]
    if any(not torch.equal(rows[0], r) for r in rows):
        raise ModelError(
            f"state {name} differs from stream to stream: every new stream must begin with the same values"
        )
    initial = tuple(rows[0].reshape(-1).tolist()) if bool(rows[0].any()) else None
    return State(
        name, f"{name}_next", dtype, tuple(1 if i == axis else d for i, d in enumerate(two.shape)), axis, initial
    )


def _state_names(module: nn.Module, names: Sequence[str], count: int) -> list[str]:
    """Given, or the module's ``state_names``, or `forward`'s own parameters after the first."""
    chosen = list(names) or list(getattr(module, "state_names", ()))
    if chosen and len(chosen) != count:
        raise ModelError(f"{len(chosen)} state names ({', '.join(chosen)}) for {count} states; correct --state-names")
    if chosen:
        return chosen
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    plain = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if len(plain) == count:
        return plain
    return [f"state_{i}" for i in range(count)] if count > 1 else ["state"]


def find_layout(of: Subject, wanted: Sequence[Layout] = LAYOUTS) -> Layout:
    """The first layout in which the module gives the same, whole or step by step, alone or in a batch.

    Raises ModelError that says for each layout why not.
    """
    reasons: list[tuple[Layout, Misfit]] = []
    stepwise: Layout | None = None
    for layout in wanted:
        try:
            _keeps(of, layout)
        except Misfit as misfit:
            reasons.append((layout, misfit))
            continue
        if layout.time_axis is None:
            return stepwise or layout
        try:
            of.whole(layout, of.sample(STEPS, BATCH, 2), of.initial(BATCH))
        except Misfit:
            stepwise = stepwise or Layout(layout.time_axis, layout.batch_axis, stepwise=True)
            continue
        try:
            _causal(of, layout)
        except Misfit as misfit:
            reasons.append((layout, misfit))
            continue
        return layout
    if stepwise is not None:
        return stepwise
    raise ModelError(_no_layout(of, reasons))


def _no_layout(of: Subject, reasons: Sequence[tuple[Layout, Misfit]]) -> str:
    for layout, misfit in reasons:
        if isinstance(misfit, Unfit):
            return f"forward cannot serve streams, with steps as {layout}: {misfit}"
    what = ", ".join(f"{s.dtype}{list(s.shape)}" for s in of.steps)
    hint = "correct --steps"
    if any("IndexError" in str(misfit) for _, misfit in reasons):
        hint += f", or lower --step-limit (tried below {of.step_limit})"
    if any("positional argument" in str(misfit) for _, misfit in reasons):
        hint = "forward takes the steps and then each state as an argument of its own"
    by_reason: dict[str, list[str]] = {}
    for layout, misfit in reasons:
        by_reason.setdefault(str(misfit), []).append(str(layout))
    said = "; ".join(f"as {' or '.join(layouts)}: {reason}" for reason, layouts in by_reason.items())
    return f"forward does not serve steps {what}: {said}; {hint}"


def _keeps(of: Subject, layout: Layout) -> None:
    """A single step of several streams: shapes hold, runs repeat, and no stream minds its neighbours."""
    steps, states = of.sample(1, BATCH, 1), of.initial(BATCH)
    outputs, after = of.whole(layout, steps, states)
    again, _ = of.whole(layout, steps, states)
    if not all(of.same(a, b) for a, b in zip(outputs, again)):
        raise ModelError("two runs of the same steps differ in eval mode: the module must not draw at random")
    for i in range(BATCH):
        alone, own = of.whole(layout, [s[:, i : i + 1] for s in steps], of.initial(1))
        pairs = [(a[:, 0], b[:, i]) for a, b in zip(alone, outputs)]
        pairs += [
            (a.select(s.batch_axis or 0, 0), b.select(s.batch_axis or 0, i)) for s, a, b in zip(of.states, own, after)
        ]
        if not all(of.same(a, b) for a, b in pairs):
            raise Unfit("a stream's result depends on its neighbours in the batch")


def _causal(of: Subject, layout: Layout) -> None:
    steps, states = of.sample(STEPS, BATCH, 3), of.initial(BATCH)
    whole, stepped = of.whole(layout, steps, states), of.stepped(layout, steps, states)
    if not all(of.same(a, b) for x, y in zip(whole, stepped) for a, b in zip(x, y)):
        raise Unfit("a whole sequence and its single steps give different results: it looks ahead, or drops its state")


def outputs_of(of: Subject, layout: Layout, names: Sequence[str]) -> tuple[Output, ...]:
    """Outputs with their names: given, or the module's ``output_names``, or output, output_0, output_1 ..."""
    outputs, _ = of.whole(layout, of.sample(1, BATCH, 1), of.initial(BATCH))
    chosen = list(names) or list(getattr(of.module, "output_names", ()))
    if not chosen:
        chosen = ["output"] if len(outputs) == 1 else [f"output_{i}" for i in range(len(outputs))]
    if len(chosen) != len(outputs):
        raise ModelError(
            f"{len(chosen)} output names ({', '.join(chosen)}) for {len(outputs)} outputs; correct --output-names"
        )
    for name, output in zip(chosen, outputs):
        if name_of(output.dtype) not in DTYPES:
            raise ModelError(f"output {name} is {name_of(output.dtype)}: an output is one of {', '.join(DTYPES)}")
    return tuple(Output(n, name_of(o.dtype), tuple(o.shape[2:])) for n, o in zip(chosen, outputs))


def split(returned: Any, states: int) -> tuple[Tensors, Tensors]:
    """What `forward` returned -> outputs, states. Raises ModelError that says what was expected."""
    after = "state" if states == 1 else f"{states} states"
    expected = f"expected (outputs, {after}), one state for each tensor of initial_state"
    if not isinstance(returned, (tuple, list)):
        raise ModelError(f"forward returned {_describe(returned)}; {expected}")
    if len(returned) != 1 + states:
        raise ModelError(f"forward returned {len(returned)} values ({', '.join(map(_describe, returned))}); {expected}")
    first, carried = returned[0], tuple(returned[1:])
    outputs = tuple(first) if isinstance(first, (tuple, list)) else (first,)
    if not outputs or not all(isinstance(t, Tensor) for t in (*outputs, *carried)):
        raise ModelError(f"forward returned {', '.join(map(_describe, returned))}; {expected}")
    return outputs, carried


def as_tuple(state: Any) -> Tensors:
    """initial_state's answer. Raises ModelError when it is neither a tensor nor a tuple of tensors."""
    states = tuple(state) if isinstance(state, (tuple, list)) else (state,)
    for s in states:
        if not isinstance(s, Tensor):
            raise ModelError(f"initial_state returned {_describe(state)}; expected a tensor or a tuple of tensors")
    return states


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def first_line(error: BaseException) -> str:
    """An exception's first line, short enough for one of ours."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
