"""Muon for the matrices of the layers, Adam for all else: fewer passes over the text to the same loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.adam import adam

from lit_transformer.errors import InputError

WHOLE_WEIGHTS = "MuonAdam needs whole weights: set trainer.strategy to ddp, or take torch.optim.Adam"
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that Muon's author tuned to rise steeply from 0


class MuonAdam(torch.optim.Optimizer):
    r"""Steps whose matrices are orthogonal: all directions of a weight learn alike, the rare ones too.

    Adam divides each number of a gradient by its own size. Muon takes a matrix as the map that it is: the step is the
    nearest orthogonal matrix to the gradient's running mean, of which a few Newton-Schulz iterations find enough. What
    is no map has no directions: embeddings and output layers are tables with a row for each word, and biases and gains
    are vectors. They go with Adam.

    Matrices with two dimensions are Muon's unless ``leave_to_adam`` says otherwise, or their group has ``muon=False``;
    ``LitTransformer`` leaves embeddings and the output layer to Adam by itself. With the default ``scale`` the numbers
    of a step are about as large as those of Adam, so that both have the same learning rate, which
    ``InverseSqrtWarmup`` sets. An iteration is three products of matrices, and a step of five costs about as much as
    five times ``d_model`` tokens of a batch: little beside batches of ten thousands.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; for the scale Liu et al.
    2025, "Muon is scalable for LLM training", equation 4; Kingma and Ba 2015 for Adam.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate of both.
        momentum: How much of the running mean of gradients stays at each step of Muon.
        betas: Adam's decay of the running means of gradients and of their squares.
        eps: Adam's epsilon.
        scale: Root mean square of the numbers of Muon's steps, in units of ``lr``.
        weight_decay: How much of all weights goes at each step, in units of ``lr``.
        num_iterations: Newton-Schulz iterations.

    Raises:
        ValueError: If a number is out of its range.
        InputError: If weights are divided over processes (FSDP), in a step or by ``LitTransformer``.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4))
        >>> optimizer = MuonAdam(network.parameters(), lr=0.01)
        >>> optimizer.leave_to_adam([network[0].weight])
        >>> [(group["muon"], len(group["params"])) for group in optimizer.param_groups]
        [(True, 1), (False, 1), (False, 1)]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-9,
        scale: float = 0.2,
        weight_decay: float = 0.0,
        num_iterations: int = 5,
    ) -> None:
        for name, value in {"lr": lr, "eps": eps, "scale": scale, "weight_decay": weight_decay}.items():
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        for name, value in {"momentum": momentum, "betas[0]": betas[0], "betas[1]": betas[1]}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
        if num_iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "scale": scale}
        defaults |= {"weight_decay": weight_decay, "num_iterations": num_iterations}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters: a group that does not say ``muon`` becomes two, of its matrices and of all else.

        Raises:
            ValueError: If a group with ``muon=True`` has something else than matrices.
        """
        given = param_group["params"]
        params = given if isinstance(given, (Tensor, set)) else list(given)  # torch refuses sets
        if "muon" in param_group or isinstance(params, set):
            super().add_param_group({**param_group, "params": params})
            group = self.param_groups[-1]
            if group["muon"] and (others := [one for one in group["params"] if one.ndim != 2]):
                raise ValueError(f"Muon is for matrices, and a parameter has the shape {tuple(others[0].shape)}")
            return
        params = [params] if isinstance(params, Tensor) else params
        for is_muon in (True, False):
            own = [one for one in params if ((one[1] if isinstance(one, tuple) else one).ndim == 2) == is_muon]
            if own:  # torch takes an empty group for one without names
                super().add_param_group({**param_group, "params": own, "muon": is_muon})

    def leave_to_adam(self, parameters: Iterable[Tensor]) -> None:
        """Takes tables of words, such as embeddings, from Muon; to be called before the first step."""
        tables = {id(one) for one in parameters}
        for group in [one for one in self.param_groups if one["muon"]]:
            names = group.get("param_names", [None] * len(group["params"]))
            named = list(zip(names, group["params"], strict=True))
            moved = [pair for pair in named if id(pair[1]) in tables]
            kept = [pair for pair in named if id(pair[1]) not in tables]
            settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            group["params"] = [one for _, one in kept]
            if "param_names" in group:
                group["param_names"] = [name for name, _ in kept]
            if moved:
                params = moved if "param_names" in group else [one for _, one in moved]
                super().add_param_group({**settings, "params": params, "muon": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Changes the parameters that have a gradient; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [one for one in group["params"] if one.grad is not None]
            if not parameters:
                continue
            if any(type(one.data) is not Tensor for one in parameters):
                raise InputError(WHOLE_WEIGHTS)
            if group["weight_decay"]:
                for parameter in parameters:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
            (self._step_of_muon if group["muon"] else self._step_of_adam)(group, parameters)
        return loss

    def _step_of_muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Matrices of one shape go through the iterations together."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, alike in by_shape.items():
            directions = torch.stack(self._directions(alike, group["momentum"]))
            steps = orthogonalized(directions, group["num_iterations"]).to(alike[0].dtype)
            size = group["lr"] * group["scale"] * max(shape) ** 0.5
            torch._foreach_sub_(alike, list(steps), alpha=size)

    def _directions(self, parameters: list[Tensor], momentum: float) -> list[Tensor]:
        """Nesterov's: the running means of the gradients as they will be if the next ones are like these."""
        gradients = [one.grad for one in parameters if one.grad is not None]
        for one in parameters:
            if not self.state[one]:
                self.state[one]["momentum_buffer"] = torch.zeros_like(one)
        means = [self.state[one]["momentum_buffer"] for one in parameters]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, means, momentum))

    def _step_of_adam(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[one] for one in parameters]
        is_fused = all(one.device.type == "cpu" for one in parameters)  # else torch chooses
        adam(
            parameters,
            [one.grad for one in parameters if one.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=is_fused or None,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        if is_fused:
            increment_version(parameters)  # as other steps do by themselves: copies of the weights are old now


def orthogonalized(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """The nearest orthogonal matrices to those of a batch ``(N, R, C)``, nearly: singular values become 0.7 to 1.2.

    Computes in bfloat16 on GPUs and in float32 elsewhere.

    Example:
        >>> values = torch.linalg.svdvals(orthogonalized(torch.diag(torch.tensor([9.0, 1.0, 0.3]))[None]))
        >>> bool((values > 0.6).all() and (values < 1.3).all())
        True
    """
    is_tall = matrices.size(-2) > matrices.size(-1)
    found = matrices.mT if is_tall else matrices
    found = found.to(torch.bfloat16 if found.is_cuda else torch.float32)
    found = found / (found.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(num_iterations):
        square = found @ found.mT
        found = a * found + (b * square + c * square @ square) @ found
    result: Tensor = found.mT if is_tall else found
    return result
