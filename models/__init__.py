"""The mathematics: image tokenizers, the text-to-image transformer and CLIP, knowing no device and no rank.

`from models import DiscreteVAE, OpenAIDiscreteVAE, VQGanVAE, DALLE, CLIP` gives them with the keywords of
DALLE-pytorch; see `models/library.py`, which is loaded when one of the names is asked for.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CLIP", "DALLE", "DiscreteVAE", "OpenAIDiscreteVAE", "VQGanVAE"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from models import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
