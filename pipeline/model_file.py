"""A model's file: found, read, and its contract held against its graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from pipeline.contract import DTYPES, METADATA_KEY, RESERVED, Contract
from pipeline.errors import ContractError, ModelError


def find_model(path: Path) -> Path:
    """``model.onnx`` itself, ``NAME/VERSION`` or ``NAME`` (then its highest version) -> the file.

    Raises ModelError naming what was looked for.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise ModelError(f"no model at {path}: expected a model.onnx, or a folder NAME/VERSION that holds one")
    if (path / "model.onnx").is_file():
        return path / "model.onnx"
    versions = [p for p in path.iterdir() if p.name.isdigit() and (p / "model.onnx").is_file()]
    if not versions:
        raise ModelError(f"no model.onnx in {path} nor in a numbered version below it")
    return max(versions, key=lambda p: int(p.name)) / "model.onnx"


def load_graph(file: Path) -> onnx.ModelProto:
    """Raises ModelError for a file that is no ONNX model."""
    try:
        model = onnx.load(str(file))
        onnx.checker.check_model(model)
    except OSError as error:
        raise ModelError(f"cannot read {error.filename or file}: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001  # protobuf and the checker raise whatever they like
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{file}: not a readable ONNX model ({first}); export it again") from None
    return model


def read_contract(model: onnx.ModelProto, where: str) -> Contract:
    """The contract in the model's metadata, held against its graph. Raises ContractError."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            contract = Contract.from_json(entry.value, f"{where}: contract")
            check_graph(contract, model, where)
            return contract
    raise ContractError(
        f"{where}: no contract in the model's metadata ({METADATA_KEY}); write one with `eddy export` (from PyTorch)"
        " or `eddy adopt` (from an ONNX file)"
    )


def write_contract(model: onnx.ModelProto, contract: Contract, where: str = "model") -> None:
    """Puts the contract into the metadata, replacing one that is there. Raises ContractError if it does not fit."""
    contract.check(f"{where}: contract")
    check_graph(contract, model, where)
    kept = [(e.key, e.value) for e in model.metadata_props if e.key != METADATA_KEY]
    del model.metadata_props[:]
    for key, value in [*kept, (METADATA_KEY, contract.to_json())]:
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def check_graph(contract: Contract, model: onnx.ModelProto, where: str) -> None:
    """Every input and output the contract names is in the graph with its dtype and shape, and no input is left over.

    Raises ContractError naming the first thing that differs.
    """
    initialisers = {i.name for i in model.graph.initializer}
    inputs = {v.name: v for v in model.graph.input if v.name not in initialisers}
    outputs = {v.name: v for v in model.graph.output}
    lead = 1 if contract.time_axis is None else 2

    def check(
        values: Mapping[str, onnx.ValueInfoProto], kind: str, name: str, dtype: str, dims: list[int | None]
    ) -> None:
        value = values.get(name)
        if value is None:
            known = ", ".join(values) or "none"
            raise ContractError(f"{where}: the contract names {kind} {name!r}, the graph has {known}")
        tensor = value.type.tensor_type
        if tensor.elem_type != DTYPES[dtype]:
            found = next((d for d, t in DTYPES.items() if t == tensor.elem_type), f"type {tensor.elem_type}")
            raise ContractError(f"{where}: {kind} {name!r} is {found} in the graph, {dtype} in the contract")
        if not tensor.HasField("shape"):
            return
        graph = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        fits = len(graph) == len(dims) and all(g is None or d is None or g == d for g, d in zip(graph, dims))
        if not fits:
            show = [d if d is not None else "?" for d in graph]
            want = [d if d is not None else "?" for d in dims]
            raise ContractError(f"{where}: {kind} {name!r} has shape {show} in the graph, {want} in the contract")

    for s in contract.steps:
        check(inputs, "step input", s.name, s.dtype, [None] * lead + list(s.shape))
    for c in contract.constants:
        check(
            inputs,
            "constant input",
            c.name,
            c.dtype,
            [None if c.header is not None and i == c.batch_axis else d for i, d in enumerate(c.shape)],
        )
    for st in contract.states:
        dims: list[int | None] = [None if i == st.batch_axis else d for i, d in enumerate(st.shape)]
        check(inputs, "state input", st.input, st.dtype, dims)
        check(outputs, "state output", st.output, st.dtype, dims)
    for o in contract.outputs:
        check(outputs, "output", o.name, o.dtype, [None] * lead + list(o.shape))
    named = {s.name for s in contract.steps} | {c.name for c in contract.constants} | {s.input for s in contract.states}
    extra = sorted(set(inputs) - named)
    if extra:
        raise ContractError(f"{where}: the graph needs input {extra[0]!r}, which the contract does not name")
    clash = sorted(n for n in [*inputs, *outputs] if n.startswith(RESERVED))
    if clash:
        raise ContractError(f"{where}: the graph uses {clash[0]!r}; names beginning with {RESERVED!r} are reserved")
