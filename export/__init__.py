"""PyTorch to ONNX: networks, training, exporter and its proof. Needs the extra ``export``.

``from export import export_module`` is the whole way from a module to a model folder; the package itself loads
without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.exporter import Exported, ExportOptions, export_module
    from export.tokens import tokens_codec

__all__ = ["ExportOptions", "Exported", "export_module", "tokens_codec"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from export import exporter, tokens

        return getattr(tokens if name == "tokens_codec" else exporter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
