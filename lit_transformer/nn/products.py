"""Matrix products with weights laid out for decoding on a CPU, in three precisions."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_transformer.kernels import has_onednn

Precision = Literal["float32", "bf16", "int8"]

_SMALL = 1 << 17  # multiplications of a product below which the plain kernel wins: the other takes longer to start


class Product:
    """Applies one or several linear layers to the same input at once, with weights copied and packed beforehand.

    The plain reference is ``torch.cat([linear(x) for linear in linears], -1)``, with ``relu`` after it where asked.

    - ``float32`` and ``bf16``: oneDNN's kernel with the weights in the order in which it reads them. For a few rows
      it is two to three times as fast as ``F.linear``, for hundreds a quarter faster. Where torch is built without
      oneDNN, or the CPU has no vector instructions of the kind that oneDNN's bfloat16 asks for, ``F.linear`` does
      the same.
    - ``int8``: weights in 8 bits with a scale for each output, inputs rounded to 8 bits on the way with one scale for
      all rows, results in float32. Inputs keep 7 bits on x86 CPUs without VNNI, whose 16-bit sums are too short.

    Args:
        linears: The layers; all read the same input, their outputs are set side by side.
        precision: Of weights and arithmetic.
        relu: Whether to replace negative results by zero.

    Example:
        >>> linears = [nn.Linear(16, 16), nn.Linear(16, 32)]
        >>> Product(linears, "float32")(torch.randn(3, 16)).shape
        torch.Size([3, 48])
    """

    def __init__(self, linears: Sequence[nn.Linear], precision: Precision, relu: bool = False) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        weight = torch.cat([linear.weight.detach() for linear in linears]).to(dtype)
        bias = None
        if any(linear.bias is not None for linear in linears):
            parts = [weight.new_zeros(n.out_features) if n.bias is None else n.bias.detach() for n in linears]
            bias = torch.cat(parts).to(dtype)
        self._size = weight.numel()
        make = _int8 if precision == "int8" else _packed if has_onednn(dtype) else _plain
        self._apply = make(weight, bias, relu)
        has_plain = precision == "float32" and self._size < _SMALL
        self._apply_small = _plain(weight, bias, relu) if has_plain else None

    def __call__(self, x: Tensor) -> Tensor:
        """The products ``(..., O)`` of inputs ``(..., I)``; ``O`` is the sum of the layers' outputs."""
        if self._apply_small is not None and x.numel() // x.size(-1) * self._size < _SMALL:
            return self._apply_small(x)
        return self._apply(x)


def check_precision(precision: str) -> None:
    """Checks the name of a precision.

    Raises:
        ValueError: If it is none of those that exist.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")


def _plain(weight: Tensor, bias: Tensor | None, relu: bool) -> Callable[[Tensor], Tensor]:
    if relu:
        return lambda x: F.linear(x, weight, bias).relu_()
    return lambda x: F.linear(x, weight, bias)


def _packed(weight: Tensor, bias: Tensor | None, relu: bool) -> Callable[[Tensor], Tensor]:
    product, activation = torch.ops.mkldnn._linear_pointwise.default, "relu" if relu else "none"
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return lambda x: product(x, packed, bias, activation, [], "")


def _int8(weight: Tensor, bias: Tensor | None, relu: bool) -> Callable[[Tensor], Tensor]:
    packed, has_short_sums = _quantized(weight, bias), _has_short_sums()
    product = torch.ops.quantized.linear_relu_dynamic if relu else torch.ops.quantized.linear_dynamic
    product = getattr(product.default, "_op", product)  # past checks in Python that take as long as a small product
    return lambda x: product(x, packed, has_short_sums)  # if so, inputs are rounded to 7 bits


def _quantized(weight: Tensor, bias: Tensor | None) -> Any:
    scales = weight.abs().amax(dim=1).clamp_min(1e-12).double() / 127
    zeros = torch.zeros_like(scales, dtype=torch.long)
    with warnings.catch_warnings():  # torch means to drop such tensors one day; its newer operators start slower
        warnings.filterwarnings("ignore", ".*quantized tensor creation functions", UserWarning)
        quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(quantized, bias)


@functools.cache
def _has_short_sums() -> bool:
    """Whether torch adds 8-bit products up in 16 bits, too few for large ones: on x86 CPUs before VNNI."""
    ones = torch.ones(1, 64)
    return bool(torch.ops.quantized.linear_dynamic(ones, _quantized(ones, None), False) < 60)
