"""How float32 products are rounded, as torch's flags say: "tf32" or "ieee".

torch has one flag for convolutions and one for products of matrices; by default only convolutions round to TF32.
"""

from __future__ import annotations

from typing import Any

import torch


def of_convolutions(dtype: torch.dtype = torch.float32) -> str:
    """The flag of convolutions, or what it inherits.

    The older `torch.backends.cudnn.allow_tf32` sets the same flag, but cannot be read where the flags of convolutions
    and of recurrent networks differ.
    """
    return _first(dtype, torch.backends.cudnn.conv, torch.backends.cudnn, torch.backends)  # type: ignore[attr-defined]


def of_matrix_products(dtype: torch.dtype = torch.float32) -> str:
    """The flag of matrix products, which `torch.set_float32_matmul_precision` sets, too; or what it inherits."""
    return _first(dtype, torch.backends.cuda.matmul, torch.backends)


def _first(dtype: torch.dtype, *settings: Any) -> str:
    if dtype != torch.float32:
        return "ieee"  # it has no choice
    chosen = next((s.fp32_precision for s in settings if s.fp32_precision != "none"), "ieee")
    return "tf32" if chosen == "tf32" else "ieee"
