"""Checkpoints in a rhythm of steps, with scores of their own weights, and one of the very last step."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

_LESS_IS_BETTER = r"loss|perplexity|error|distance|edit_?rate|info_?lost|(\b|_)(ter|wer|cer|nll|ppl)$"


class StepCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` that also writes one at the end of the training, whatever its rhythm.

    With ``every_n_train_steps=1500`` and ``max_steps=100000`` Lightning's own would end with step 99,000. With
    ``save_on_exception`` it also writes one when the training is stopped, and never over another.

    If ``monitor`` is logged by validation, such as ``val/loss``, each checkpoint waits for the next validation, so that
    it is ranked by the score of its own weights; let ``every_n_train_steps`` be a multiple of ``val_check_interval``.
    A last step without validation is kept beside the best ones, without a rank.

    Args:
        dirpath: Folder of the checkpoints.
        filename: Name of a file, in which ``{step}`` and logged names are replaced.
        monitor: What ranks checkpoints, such as ``val/loss``; None keeps the newest.
        mode: Whether the best has the least (``min``) or the most (``max``) of it. None chooses ``min`` for losses,
            perplexities, TER, edit distances and error rates, and ``max`` for all else.
        **kwargs: Further arguments of Lightning's ``ModelCheckpoint``.

    Example:
        >>> StepCheckpoint(monitor="val/loss").mode, StepCheckpoint(monitor="val/bleu").mode
        ('min', 'max')
    """

    _is_of_validation = False  # whether validation logs what is monitored
    _scored_step = -1  # when it did so last
    _has_begun = False  # whether the training has, of which an interruption may leave something
    _is_stopping = False  # whether what is written is what an interruption leaves
    _interim: list[str] = []  # noqa: RUF012 - never changed in place; those written when the run was stopped

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        **kwargs: Any,
    ) -> None:
        if mode is None:
            mode = "min" if re.search(_LESS_IS_BETTER, (monitor or "").lower()) else "max"
        super().__init__(dirpath, filename, monitor, mode=mode, **kwargs)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finds its folder; an interruption before the training begins leaves nothing there."""
        super().setup(trainer, pl_module, stage)
        self._has_begun = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the scores of an earlier run."""
        super().on_train_start(trainer, pl_module)
        self._defer_save_until_validation, self._scored_step, self._has_begun = False, -1, True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a checkpoint if it is time for one, or if this was the last step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps and not self._is_score_to_come(trainer):
            self._write_last_step(trainer)  # here rather than at the end: it is like all others, resumable

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the checkpoint that has waited for its score."""
        if trainer.sanity_checking:
            return
        if self.monitor in trainer._logger_connector.metrics["callback"]:  # those of this validation alone
            self._is_of_validation, self._scored_step = True, trainer.global_step
        if not self._is_stale(trainer):  # else it goes on waiting: BLEU may come with every second validation only
            super().on_validation_end(trainer, pl_module)
            self._write_deferred(trainer)
        if trainer.global_step == trainer.max_steps:
            self._write_last_step(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes a checkpoint if the training ended otherwise: with an epoch, after a time, or early."""
        self._write_last_step(trainer)
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Writes a checkpoint before the training ends in an error or a signal; it replaces none that is there.

        It stays until the resumed run has written its next one, so that the checkpoints are those of a run that was
        never stopped. Of several processes one may have failed alone, while the others wait for it somewhere else; a
        checkpoint needs all of them, so that there is one only if all have stopped at the same step.
        """
        if not self._has_begun or not self._should_save_on_exception(trainer):
            return
        if trainer.world_size > 1 and not _is_everywhere(exception):
            return
        metrics = self._monitor_candidates(trainer)
        path = self.format_checkpoint_name(metrics)
        if self._fs.exists(path):  # asked in this process alone: perhaps the others have not failed
            path = self._free_name(trainer, metrics, self._fs.exists)
        self._interim, self._is_stopping = [*self._interim, path], True  # noted in the checkpoint itself too
        self._save_checkpoint(trainer, path)
        self._save_last_checkpoint(trainer, metrics)
        self._is_stopping = False
        rank_zero_info(f"stopped by {type(exception).__name__}; a checkpoint was written first: {path}")

    def format_checkpoint_name(
        self, metrics: dict[str, Tensor], filename: str | None = None, ver: int | None = None, prefix: str | None = None
    ) -> str:
        """The name of a file; a score that is not known is ``nan`` in it."""
        if self.monitor not in (None, *metrics):
            metrics = {**metrics, str(self.monitor): torch.tensor(torch.nan)}
        return super().format_checkpoint_name(metrics, filename, ver, prefix)

    def state_dict(self) -> dict[str, Any]:
        """Also whether the score comes from validation, which a resumed run cannot know before its first one."""
        return {**super().state_dict(), "is_of_validation": self._is_of_validation, "interim": self._interim}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the best checkpoints so far, also if their folder has been moved."""
        state_dict = _moved(state_dict, self.dirpath)
        super().load_state_dict(state_dict)
        self._is_of_validation = state_dict.get("is_of_validation", False)
        is_same = state_dict.get("dirpath") == self.dirpath
        self._interim = list(state_dict.get("interim", [])) if is_same else []

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Writes a checkpoint of the rhythm; those that were written when the run was stopped have done their work."""
        old, self._interim = (self._interim, []) if not self._is_stopping else ([], self._interim)
        super()._save_checkpoint(trainer, filepath)
        for path in old:
            if path != filepath:
                self._remove_checkpoint(trainer, path)

    def _is_stale(self, trainer: L.Trainer) -> bool:
        """Whether the last score belongs to the weights of another step."""
        return self._is_of_validation and self._scored_step != trainer.global_step

    def _is_score_to_come(self, trainer: L.Trainer) -> bool:
        """Whether a validation follows at once that may log what is monitored."""
        loop = trainer.fit_loop
        is_missing = self.monitor not in (None, *self._monitor_candidates(trainer))
        return (
            is_missing and loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        )

    def _monitor_candidates(self, trainer: L.Trainer) -> dict[str, Tensor]:
        """Leaves a stale score out; Lightning then defers the checkpoint to the end of the next validation."""
        candidates = super()._monitor_candidates(trainer)
        return {
            name: value for name, value in candidates.items() if name != self.monitor or not self._is_stale(trainer)
        }

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if not self._is_stale(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _write_deferred(self, trainer: L.Trainer) -> None:
        """Writes what Lightning has not, because it expects checkpoints of steps and validations by epochs apart."""
        if self._defer_save_until_validation and not self._should_skip_saving_checkpoint(trainer):
            metrics = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, metrics)
            self._save_last_checkpoint(trainer, metrics)
        self._defer_save_until_validation = False

    def _write_last_step(self, trainer: L.Trainer) -> None:
        if self._should_skip_saving_checkpoint(trainer):  # such as one that is written already
            return
        metrics = self._monitor_candidates(trainer)
        if self.monitor in (None, *metrics):
            self._save_topk_checkpoint(trainer, metrics)
        if self.save_top_k and self._last_global_step_saved != trainer.global_step:  # not among the best, but the last
            exists = partial(self.file_exists, trainer=trainer)
            self._save_checkpoint(trainer, self._free_name(trainer, metrics, exists))
        self._save_last_checkpoint(trainer, metrics)

    def _free_name(self, trainer: L.Trainer, metrics: dict[str, Tensor], exists: Callable[[str], bool]) -> str:
        """A name that says the step, as ``filename`` may be ``best``, and that no other file has."""
        name, version = f"step={trainer.global_step}", self.STARTING_VERSION
        path = self.format_checkpoint_name(metrics, name)
        while exists(path):
            path = self.format_checkpoint_name(metrics, name, version)
            version += 1
        return path


def _is_everywhere(exception: BaseException) -> bool:
    """Whether all processes stop with it at the same step."""
    return isinstance(exception, SIGTERMException) or getattr(exception, "is_everywhere", False)


def _moved(state: dict[str, Any], dirpath: str | Path | None) -> dict[str, Any]:
    """The state of a callback with the paths of where its folder is now, if its checkpoints lie there."""
    old = state.get("dirpath")
    if old is None or dirpath is None or str(old) == str(dirpath):
        return state

    def here(path: str) -> str:
        return str(Path(dirpath) / Path(path).name) if path else path

    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    paths = {name: here(state.get(name, "")) for name in names}
    ranked = {here(path): score for path, score in state.get("best_k_models", {}).items()}
    interim = [here(path) for path in state.get("interim", [])]
    if not (ranked or interim) or not all(Path(path).exists() for path in (*ranked, *interim)):
        return state  # another run's folder: it begins with checkpoints of its own
    return {**state, **paths, "best_k_models": ranked, "interim": interim, "dirpath": dirpath}
