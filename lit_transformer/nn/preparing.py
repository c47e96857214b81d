"""Networks made ready for searches on a CPU, one or several together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

from lit_transformer.interfaces import TranslationNetwork
from lit_transformer.nn.compiled import CompiledTransformer
from lit_transformer.nn.ensemble import Ensemble
from lit_transformer.nn.inference import PreparedTransformer
from lit_transformer.nn.obstacles import compile_obstacle, obstacle
from lit_transformer.nn.products import Precision


class PreparedEnsemble(Ensemble):
    """An ensemble of prepared or compiled networks.

    Args:
        networks: The networks, all of one kind.
    """

    def __init__(self, networks: Sequence[PreparedTransformer | CompiledTransformer]) -> None:
        super().__init__(networks)
        self._copies = list(networks)

    def is_current(self) -> bool:
        """Whether all networks still have the weights that were copied; see ``PreparedTransformer.is_current``."""
        return all(one.is_current() for one in self._copies)


Prepared: TypeAlias = PreparedTransformer | CompiledTransformer | PreparedEnsemble


def obstacle_to(network: TranslationNetwork, precision: Precision, compile: bool = False) -> str | None:
    """Why a network, or one of an ensemble, cannot be prepared or compiled, in a few words; None if it can."""
    parts = _parts(network)
    reason = next(filter(None, map(obstacle, parts)), None)
    if reason is not None or not compile:
        return reason
    return next(filter(None, (compile_obstacle(part, precision) for part in parts)), None)


def prepared(network: TranslationNetwork, precision: Precision, compile: bool = False) -> Prepared:
    """The network prepared for searches, or compiled.

    Raises:
        ValueError: If there is an obstacle, see :func:`obstacle_to`.
    """
    kind = CompiledTransformer if compile else PreparedTransformer
    copies = [kind(part, precision) for part in _parts(network)]
    return PreparedEnsemble(copies) if type(network) is Ensemble else copies[0]


def prepare_if_possible(network: TranslationNetwork) -> Prepared | None:
    """The network prepared in the precision of its weights or of autocast; None where that cannot be."""
    dtypes = {parameter.dtype for parameter in network.parameters()}
    if torch.is_autocast_enabled("cpu"):
        dtypes = {torch.get_autocast_dtype("cpu")}
    precisions: dict[torch.dtype, Precision] = {torch.float32: "float32", torch.bfloat16: "bf16"}
    precision = precisions.get(dtypes.pop()) if len(dtypes) == 1 else None
    return prepared(network, precision) if precision and obstacle_to(network, precision) is None else None


def _parts(network: TranslationNetwork) -> list[TranslationNetwork]:
    """The networks of an ensemble, or the network; a class of one's own decides for itself."""
    return network.members if type(network) is Ensemble else [network]
