"""What every format needs: a check of the network, and JSON files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_transformer.checkpoints import replacing
from lit_transformer.interfaces import InputError, TranslationNetwork
from lit_transformer.nn import Transformer


def own_transformer(network: TranslationNetwork, kind: str) -> Transformer:
    """The network, if it is the package's own and has heads as other toolkits know them.

    Args:
        network: Any network.
        kind: The model that it should become, in a word, for the message.

    Raises:
        InputError: If it is of another class, which may compute anything, has other widths of heads, or is not on the
            CPU.
    """
    require_cpu(network)
    if type(network) is not Transformer:
        raise InputError(
            f"{type(network).__name__} cannot become a {kind} model: only the package's own Transformer is known to "
            f"compute what {kind} does"
        )
    for name, width in (("d_k", network.d_k), ("d_v", network.d_v)):
        if width not in (None, network.d_model / network.num_heads):
            raise InputError(
                f"this network cannot become a {kind} model: {name}={width}, but heads are "
                f"d_model / num_heads = {network.d_model / network.num_heads:g} features wide there"
            )
    return network


def require_cpu(network: TranslationNetwork) -> None:
    """Checks that all weights are on the CPU, where files are written from.

    Raises:
        InputError: If some are elsewhere.
    """
    device = next((parameter.device for parameter in network.parameters() if parameter.device.type != "cpu"), None)
    if device is not None:
        raise InputError(f"the network is on {device}, and is written from the CPU: call translator.to('cpu') first")


def write_json(folder: Path, contents: dict[str, dict[str, Any]]) -> list[Path]:
    """Writes each content under its name into the folder, which is made if need be; returns the files."""
    for name, content in contents.items():
        with replacing(folder / name) as partial:
            partial.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    return [folder / name for name in contents]
