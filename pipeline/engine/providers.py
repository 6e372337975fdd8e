"""Execution providers: which device runs the model, never silently another than the user thinks.

``require``: every listed provider must be there, the first must take nodes, and no node may run on one not listed.
``prefer``: what is missing or takes nothing is left out, with a warning that says what runs instead.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx
import onnxruntime as ort

from pipeline.errors import ModelError, ProviderError

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
DEVICES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "ROCMExecutionProvider": "cuda",
    "MIGraphXExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
    "CANNExecutionProvider": "cann",
}
"""Where a provider's tensors live, in onnxruntime's words; all others compute on the host's memory."""


def open_session(
    model: onnx.ModelProto,
    providers: Sequence[str],
    options: Mapping[str, Mapping[str, str]],
    policy: str,
    intra_op_threads: int,
) -> ort.InferenceSession:
    """A session on the providers asked for. Raises ProviderError, ModelError."""
    wanted = _available(providers, policy)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = intra_op_threads
    settings.inter_op_num_threads = 1
    # A spinning thread takes from the broker, the event loop and the other engine threads what it gains here.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    settings.log_severity_level = 3
    listed = [(p, dict(options.get(p, {}))) for p in wanted]
    try:
        session = ort.InferenceSession(model.SerializeToString(), settings, providers=listed)
    except Exception as error:  # noqa: BLE001  # onnxruntime raises a class per status, with no common base
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"onnxruntime cannot load the model on {', '.join(wanted)}: {first}") from None
    _check_assignment(session, providers, policy)
    return session


def device_of(session: ort.InferenceSession) -> str:
    """Where the arena lives: the device of the session's first provider."""
    return DEVICES.get(session.get_providers()[0], "cpu")


def _available(providers: Sequence[str], policy: str) -> list[str]:
    if not providers:
        raise ProviderError(f"providers is empty: name at least one, e.g. {CPU}")
    there = ort.get_available_providers()
    missing = [p for p in providers if p not in there]
    if not missing:
        return list(providers)
    known = ", ".join(there)
    if policy == "require":
        raise ProviderError(
            f"execution provider {missing[0]!r} is not in this onnxruntime (it has {known});"
            " install the build that has it, or set provider_policy to prefer"
        )
    left = [p for p in providers if p in there] or [CPU]
    log.warning("execution provider %s is not in this onnxruntime: running on %s", ", ".join(missing), ", ".join(left))
    return left


def _check_assignment(session: ort.InferenceSession, providers: Sequence[str], policy: str) -> None:
    """Where the nodes really went, as onnxruntime assigned them."""
    counts: Counter[str] = Counter()
    examples: dict[str, set[str]] = {}
    for group in session.get_provider_graph_assignment_info():
        nodes = group.get_nodes()
        counts[group.ep_name] += len(nodes)
        examples.setdefault(group.ep_name, set()).update(n.op_type for n in nodes)
    went = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    strangers = [p for p in counts if p not in providers]
    first = providers[0]
    if counts[first] and not strangers:
        return
    if strangers and counts[first]:
        ops = ", ".join(sorted(examples[strangers[0]])[:8])
        what = f"{first} does not take all nodes: {ops} run on {strangers[0]} (nodes: {went})"
        mend = f"add {strangers[0]} to providers to allow it"
    else:
        what = f"{first} takes none of the model's nodes (nodes: {went})"
        mend = "use another provider"
    if policy == "require":
        raise ProviderError(f"execution provider {what}; {mend}, or set provider_policy to prefer")
    log.warning("execution provider %s", what)
