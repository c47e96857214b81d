"""Weights divided over processes (FSDP2), and gathered where processes do not work in step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_transformer.interfaces import InputError, TranslationNetwork


def is_sharded(module: nn.Module) -> bool:
    """Whether some weights of a module are, at present, divided over processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def load_whole_weights(module: nn.Module, weights: dict[str, Tensor], strict: bool = True) -> None:
    """Loads weights that every process has in whole, each taking its part if they are divided.

    Args:
        module: What to load into.
        weights: The same on all processes.
        strict: Whether names must be the same on both sides.
    """
    if is_sharded(module):
        own = module.state_dict()
        weights = {name: _divided_like(own.get(name), whole) for name, whole in weights.items()}
    module.load_state_dict(weights, strict=strict)


def _divided_like(own: Tensor | None, whole: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor):
        return whole
    return distribute_tensor(whole.to(own.device_mesh.device_type), own.device_mesh, own.placements)


class ShardedWeights:
    """Divides a network over processes: each keeps a part of every weight, its gradient and its optimizer state.

    In training the weights of one part of the network (``network.sharded_parts()``) are whole at a time. All processes
    gather them together, so they must make the same calls. In decoding they do not: one may need more steps, or have
    more sentences. There all weights are gathered once, before, and each process goes its own way.

    Weights that are tied stay one. The logits may be had by ``features`` and the weight of the output layer, too.

    Args:
        network: What to divide; changed in place.
        device_type: Where the processes compute, such as ``cuda`` or ``cpu``.
        world_size: Number of processes.

    Raises:
        InputError: If the installed torch is too old.
    """

    def __init__(self, network: TranslationNetwork, device_type: str, world_size: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        if not hasattr(FSDPModule, "set_reshard_after_forward"):
            raise InputError(f"sharded training needs a newer torch than {torch.__version__}; install one, or use ddp")
        mesh = init_device_mesh(device_type, (world_size,))
        self._is_whole = False
        self._layers: list[Any] = network.sharded_parts()
        for layer in self._layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        self._root: Any = fully_shard(network, mesh=mesh, reshard_after_forward=False)  # backward begins with it
        if hasattr(network, "features"):
            register_fsdp_forward_method(network, "features")

    @torch.inference_mode(False)  # the memory serves training as well
    @torch.no_grad()
    def gather(self) -> None:
        """Makes all weights whole on every process, until ``release``; all processes call it together."""
        for part in (self._root, *self._layers):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        self._is_whole = True

    def release(self) -> None:
        """Leaves each process its own part again."""
        for part in (self._root, *self._layers):
            part.set_reshard_after_forward(part is not self._root, recurse=False)
            part.reshard()
        self._is_whole = False

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All weights whole for a while, if they are not yet."""
        if self._is_whole:
            yield
            return
        self.gather()
        try:
            yield
        finally:
            self.release()
