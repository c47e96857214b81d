"""The mean of the last checkpoints of a run, which usually translates better than any one of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_transformer.checkpoints import Checkpoint, checkpoints_in, read_checkpoint, replacing
from lit_transformer.interfaces import InputError
from lit_transformer.sharding import load_whole_weights

# What a checkpoint holds to go on training; a mean of weights fits to none of it.
_TRAINING_STATE = frozenset(
    {
        "optimizer_states",
        "lr_schedulers",
        "loops",
        "callbacks",
        "current_model_state",
        "averaging_state",
        "train_totals",
    }
)


def average_checkpoints(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Tensor]:
    """The mean of the weights of several checkpoints, on the CPU.

    Sums are kept in float64 and the mean is cast back to the precision of the weights. What has no mean (integers,
    booleans) comes from the checkpoint with the most steps. One checkpoint is read at a time.

    Source: Vaswani et al. 2017, section 6.1: the last 5 checkpoints for base models, the last 20 for big ones.

    Args:
        paths: Checkpoint files of one model, at least one.

    Raises:
        InputError: If no path is given, a file does not exist or is not a checkpoint, or the models differ in names,
            shapes or precision.
    """
    if not paths:
        raise InputError("averaging needs at least one checkpoint, got none")
    sums: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    newest_step = -1
    for path in paths:
        checkpoint = read_checkpoint(path)
        weights, step = checkpoint["state_dict"], checkpoint["global_step"]
        first = first or weights
        _check_same_model(first, weights, paths[0], path)
        for name, tensor in weights.items():
            if not _has_mean(tensor):
                if step > newest_step or name not in sums:
                    sums[name] = tensor.clone()
            elif name in sums:
                sums[name] += tensor
            else:
                sums[name] = tensor.to(torch.promote_types(tensor.dtype, torch.float64), copy=True)
        newest_step = max(step, newest_step)
    return {
        name: (sums[name] / len(paths)).to(tensor.dtype) if _has_mean(tensor) else sums[name]
        for name, tensor in first.items()
    }


def last_checkpoints(path: str | os.PathLike[str], count: int) -> list[Path]:
    """The last checkpoints of a folder, up to a given one, oldest first.

    They are ordered by the optimizer step stored in them, not by name. Of several with the same step one counts
    (``last.ckpt`` is often a copy), and files that ``write_averaged_checkpoint`` made do not count. Files that cannot
    be read are passed over with a warning.

    Args:
        path: A checkpoint file, the newest to take; or a folder, to take its newest. If the folder has a folder
            ``checkpoints``, as that of a run, they are looked for there too.
        count: How many.

    Raises:
        InputError: If the path does not exist or is no checkpoint, or there are fewer checkpoints.
    """
    given = Path(path)
    if given.is_dir():
        folder, found = given, checkpoints_in(given)
    else:
        folder, limit = given.parent, read_checkpoint(given)["global_step"]
        found = [one for one in checkpoints_in(folder) if one.path.parent == folder and one.step <= limit]
    steps = by_step(found, given)
    if len(steps) < count:
        raise InputError(
            f"{count} checkpoints should be averaged, but {folder} holds {len(steps)}"
            f"{'' if given.is_dir() else f' up to {given.name}'} (steps "
            f"{', '.join(map(str, sorted(steps))) or 'none'}); average fewer with --averaging.num_checkpoints (of "
            "the command average: --last), or let training keep more with --checkpoint.save_top_k"
        )
    return [steps[step] for step in sorted(steps)[-count:]]


def by_step(found: Iterable[Checkpoint], given: Path | None = None) -> dict[int, Path]:
    """The checkpoints that count for an average, by step: of one step the last, or the one that was given."""
    chosen: dict[int, Path] = {}
    for one in found:
        if not one.is_average and (given is None or chosen.get(one.step) != given):
            chosen[one.step] = one.path
    return chosen


def write_averaged_checkpoint(paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Writes a checkpoint with the mean of the weights of others, for translation and scoring.

    Hyper-parameters and the data module's state (the tokenizer) come from the one with the most steps. The state of
    the training (optimizers, loops, callbacks) is left out. The file appears only when it is complete.

    Args:
        paths: Checkpoint files of one model, at least one.
        output: File to write. Its folder is made if need be.

    Raises:
        InputError: If no path is given, a file does not exist or is not a checkpoint, or the models differ.
    """
    mean = average_checkpoints(paths)
    steps = {os.fspath(path): int(read_checkpoint(path)["global_step"]) for path in paths}
    newest = read_checkpoint(max(steps, key=lambda path: steps[path]))
    checkpoint = {key: value for key, value in newest.items() if key not in _TRAINING_STATE}
    checkpoint["state_dict"] = _share_tied(mean, newest["state_dict"])
    names = Counter(Path(path).name for path in steps)
    checkpoint["averaged_from"] = {  # files of several runs may share a name
        Path(path).name if names[Path(path).name] == 1 else path: step for path, step in steps.items()
    }
    with replacing(Path(output)) as partial, partial.open("wb") as file:
        torch.save(checkpoint, file)


class CheckpointAveraging(Callback):
    """Scores and translates with the mean of the last checkpoints of a run.

    In ``test``, ``predict`` and ``validate`` the module's weights are replaced by the mean of the ``num_checkpoints``
    last checkpoints in the folder of the one given, up to that one; afterwards its own weights are put back. One that
    ``write_averaged_checkpoint`` made is used as it is. Does nothing in ``fit``. Every process reads the same files.
    ``averaged_from`` tells the paths and steps of the checkpoints in the last mean.

    Source: Vaswani et al. 2017, section 6.1: 5 for base models, 20 for big ones.

    Args:
        num_checkpoints: How many checkpoints are averaged. With 1 the given checkpoint is used as it is. The last step
            of a run counts as one of them, also if it comes sooner after the one before than the others do.

    Raises:
        ValueError: If ``num_checkpoints`` is below 1.
        InputError: If there are fewer checkpoints.
        MisconfigurationException: If no checkpoint is given to ``test``, ``predict`` or ``validate``.
    """

    def __init__(self, num_checkpoints: int = 5) -> None:
        if num_checkpoints < 1:
            raise ValueError(f"num_checkpoints must be at least 1, got {num_checkpoints}")
        self.num_checkpoints = num_checkpoints
        self.averaged_from: dict[str, int] = {}
        self._own_weights: dict[str, Tensor] | None = None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the mean in."""
        self._put_in(trainer, pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the mean in."""
        self._put_in(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the mean in, unless this is a validation during training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._put_in(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the module's own weights back."""
        self._put_back(pl_module)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the module's own weights back."""
        self._put_back(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the module's own weights back."""
        self._put_back(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Puts the module's own weights back."""
        self._put_back(pl_module)

    def _put_in(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.averaged_from = {}
        if self.num_checkpoints == 1:
            return
        if trainer.ckpt_path is None:
            raise MisconfigurationException(
                f"{type(self).__name__} averages the checkpoints beside a given one, but none was given; pass ckpt_path"
            )
        if "averaged_from" in read_checkpoint(trainer.ckpt_path):
            rank_zero_info(f"using {trainer.ckpt_path} as it is: it is a mean of checkpoints already")
            return
        paths = last_checkpoints(trainer.ckpt_path, self.num_checkpoints)
        mean = average_checkpoints(paths)
        own = {name: tensor.detach().to("cpu", copy=True) for name, tensor in pl_module.state_dict().items()}
        load_whole_weights(pl_module, mean, pl_module.strict_loading)
        self._own_weights = own
        self.averaged_from = {str(path): int(read_checkpoint(path)["global_step"]) for path in paths}
        names = ", ".join(f"{Path(path).name} (step {step})" for path, step in self.averaged_from.items())
        rank_zero_info(f"using the mean of {len(paths)} checkpoints of {paths[0].parent}: {names}")

    def _put_back(self, pl_module: L.LightningModule) -> None:
        if self._own_weights is not None:
            pl_module.load_state_dict(self._own_weights)
            self._own_weights = None


def _has_mean(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _check_same_model(
    first: dict[str, Tensor], other: dict[str, Tensor], first_path: object, other_path: object
) -> None:
    names = sorted(first.keys() ^ other.keys())
    if names:
        raise InputError(f"{first_path} and {other_path} hold different models: only one of them has {names[0]!r}")
    for name, tensor in first.items():
        if tensor.shape != other[name].shape or tensor.dtype != other[name].dtype:
            raise InputError(
                f"{first_path} and {other_path} hold different models: {name!r} is {tuple(tensor.shape)} of "
                f"{tensor.dtype} in the one and {tuple(other[name].shape)} of {other[name].dtype} in the other"
            )


def _share_tied(mean: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean with tied weights as one tensor again, so that the file holds them once."""
    owners: dict[tuple[Any, ...], str] = {}
    shared = dict(mean)
    for name, tensor in like.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        owner = owners.setdefault(place, name)
        if torch.equal(mean[owner], mean[name]):
            shared[name] = mean[owner]
    return shared
