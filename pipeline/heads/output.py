"""Which output of the model a head of one output reads."""

from __future__ import annotations

from pipeline.codecs.settings import Settings
from pipeline.contract import Contract, Output


def only_output(contract: Contract, settings: Settings) -> Output:
    """The output that the contract's head names, or the only one there is.

    Raises ContractError where it is not clear which, or unless it is one vector of floats a step: ``[C]``.
    """
    if contract.head.output is not None:
        output = contract.output(contract.head.output)
    elif len(contract.outputs) == 1:
        output = contract.outputs[0]
    else:
        names = ", ".join(o.name for o in contract.outputs)
        raise settings.error(f"the model has {len(contract.outputs)} outputs ({names}): head.output must name one")
    if len(output.shape) != 1 or not output.dtype.startswith("float"):
        raise settings.error(
            f"output {output.name!r} is {output.dtype}{list(output.shape)}: expected floats of shape [C]"
        )
    return output
