"""How float32 products of convolutions are rounded, as torch's flags say."""

from __future__ import annotations

import torch


def of_convolutions() -> str:
    """ "tf32" or "ieee": the flag of convolutions, or what it inherits.

    The older `torch.backends.cudnn.allow_tf32` sets the same flag, but cannot be read where the flags of convolutions
    and of recurrent networks differ.
    """
    settings = (torch.backends.cudnn.conv, torch.backends.cudnn, torch.backends)  # type: ignore[attr-defined]
    chosen = next((s.fp32_precision for s in settings if s.fp32_precision != "none"), "ieee")
    return "tf32" if chosen == "tf32" else "ieee"
