"""Matrix products of training on a CPU, by the library that does each of them fastest."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_STEP = 64  # see rounded()
SLICE = 1 << 18  # numbers worked on at a time: 1 MiB in float32, which stays in the cache of a core


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """``F.linear(x, weight, bias)``, with ``relu`` after it where asked; takes no part in gradients.

    On CPUs torch gives products in float32 to MKL, where oneDNN's are a sixth faster with AVX-512 and need no
    pass of their own for the bias and the ReLU. The weight may be a transposed view.

    Args:
        x: The inputs, ``(N, I)``.
        weight: ``(O, I)``, of the same type.
        bias: ``(O,)``, of the same type.
        relu: Whether to replace negative results by zero.

    Returns:
        ``(N, O)``.

    Example:
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [-3.0, 1.0]])
        >>> product(x, weight, relu=True)
        tensor([[11.,  0.]])
    """
    if x.numel() and x.device.type == "cpu" and has_onednn(x.dtype):
        activation = "relu" if relu else "none"
        result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, activation, [], "")
        return result
    result = F.linear(x, weight, bias)
    return result.relu_() if relu else result


def rounded(num_rows: int) -> int:
    """As many rows as to give to products on a CPU instead of ``num_rows``: the next multiple of 64.

    oneDNN compiles a product for each number of rows and keeps half a megabyte of each. Batches by
    length all differ in their numbers of tokens; rounded up, the numbers repeat.

    Example:
        >>> rounded(64), rounded(65)
        (64, 128)
    """
    return -(-num_rows // ROW_STEP) * ROW_STEP


def has_fast_bfloat16() -> bool:
    """Whether torch has good products in bfloat16 on this CPU; with AVX-512 alone they are no faster than float32."""
    return has_onednn(torch.bfloat16)


@functools.cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether torch has products of this type by oneDNN: float32 in most builds, bfloat16 with AVX-512 or on ARM."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
