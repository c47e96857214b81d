"""Whether a file of scores is about the weights that are pushed; a card tells no others."""

from __future__ import annotations

import json
import shlex
from math import isclose
from pathlib import Path
from typing import Any

from lit_transformer.checkpoints import read_checkpoint, weights_norm
from lit_transformer.interfaces import TranslationNetwork

_NEAR = 1e-5  # of norms: weights of bfloat16 differ by less, those of two seeds by far more


def why_not_of(scores: dict[str, Any], weights: Path, network: TranslationNetwork) -> str | None:
    """Why scores are not, or not surely, of the weights at hand, as the rest of a sentence; None if they are.

    Network, step, averaged checkpoints and the norm of the weights are compared, checkpoints by name and step: files
    may have been moved since.

    Args:
        scores: What ``test`` wrote to ``test.scores.json``.
        weights: What ``weights_of`` gave.
        network: The network in it.
    """
    found = scores.get("checkpoint")
    record = found if isinstance(found, dict) else {}
    reason = _why_not_by_name(scores, record, weights, network)
    scored, here = scores.get("weights_norm"), weights_norm(network)
    if scored is None or isclose(scored, here, rel_tol=_NEAR):
        return reason
    return f"{reason or f'are of other weights than {weights}'}; their norm is {scored:.6g}, here it is {here:.6g}"


def _why_not_by_name(
    scores: dict[str, Any], record: dict[str, Any], weights: Path, network: TranslationNetwork
) -> str | None:
    if record.get("step") is None and record.get("path"):
        return f"are of {record['path']}, whose weights they do not know; push the checkpoint that it was made from"
    if record.get("step") is None:
        return f"do not tell which checkpoint was scored; score {weights} with test"
    if weights.is_dir():
        return f"cannot be compared with {weights}, which has no step; push the checkpoint that was scored"
    content = read_checkpoint(weights)
    if scores.get("network") != json.loads(json.dumps(network.spec, default=str)):
        return f"are of another network than that of {weights}; score this one with test"
    step, averaged = int(content["global_step"]), _names(content.get("averaged_from"))
    scored_step, scored_mean = int(record["step"]), _names(record.get("averaged_from"))
    if (step, averaged) == (scored_step, scored_mean):
        return None
    if scored_mean and not averaged and step == scored_step:
        return (
            f"are of the mean of {len(scored_mean)} checkpoints up to step {scored_step}, not of {weights} alone; "
            f"to push that mean with them, run lit-transformer average {_files(record['averaged_from'])} "
            "--output averaged.ckpt first, then push averaged.ckpt with --scores"
        )
    return f"are of {_told(scored_step, scored_mean)}, not of {_told(step, averaged)} ({weights}); score it with test"


def _names(averaged_from: Any) -> dict[str, int]:
    """The averaged files by their name alone, with their steps."""
    return {Path(path).name: int(step) for path, step in (averaged_from or {}).items()}


def _files(averaged_from: dict[str, int]) -> str:
    """The files as a shell takes them; all of them, since a run may hold others by now."""
    return shlex.join(sorted(averaged_from, key=lambda path: averaged_from[path]))


def _told(step: int, averaged: dict[str, int]) -> str:
    return f"the mean of {len(averaged)} checkpoints up to step {step}" if averaged else f"step {step}"
