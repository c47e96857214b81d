"""The progress bar shows what counts, and nothing that misleads in an endless stream."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from standins import Data, Module, trainer
from torch import Tensor

from lit_transformer.callbacks.progress import TrainingProgress


class Talking(Module):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("train/loss", torch.tensor(0.25), prog_bar=True, batch_size=1)
        self.log("train/secret", torch.tensor(0.5), batch_size=1)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("options", "description"),
    [
        ({"max_steps": 3, "max_epochs": -1}, "training"),
        ({"max_steps": 3}, "training"),
        ({"max_epochs": 2}, "Epoch 0/1 "),
    ],
)
def test_epochs_are_counted_only_where_there_are_some(
    tmp_path: Path, options: dict[str, int], description: str
) -> None:
    seen: list[tuple[str, set[str]]] = []

    class Listening(TrainingProgress):
        def on_train_batch_end(self, *args: object) -> None:
            super().on_train_batch_end(*args)  # type: ignore[arg-type]
            assert self.progress is not None
            shown = self.get_metrics(self.trainer, self.trainer.lightning_module)
            seen.append((str(self.progress.tasks[0].description), set(shown)))

    bar = Listening(leave=False)
    quiet = {"limit_val_batches": 0, "log_every_n_steps": 1, "logger": CSVLogger(tmp_path)}
    trainer(bar, enable_progress_bar=True, **quiet, **options).fit(Talking(), Data())
    assert description in seen[0][0]
    assert ("Epoch" in seen[0][0]) == (description != "training")
    assert seen[-1][1] == {"train/loss"}  # no version number of the logger, and nothing that was not meant for the bar


def test_rows_left_out_are_shown_as_soon_as_there_are_some(tmp_path: Path) -> None:
    shown: list[object] = []

    data = Data()
    data.dropped = Counter()  # type: ignore[attr-defined]

    class Listening(TrainingProgress):
        def on_train_batch_end(self, *args: object) -> None:
            super().on_train_batch_end(*args)  # type: ignore[arg-type]
            shown.append(self.get_metrics(self.trainer, self.trainer.lightning_module).get("left out"))
            data.dropped.update({"empty": 1, "overlong": 1200})

    quiet = {"limit_val_batches": 0, "log_every_n_steps": 1, "logger": CSVLogger(tmp_path)}
    trainer(Listening(leave=False), enable_progress_bar=True, max_steps=2, **quiet).fit(Talking(), data)
    assert shown == [None, "1,200 overlong, 1 empty"]


class Counting(TrainingProgress):
    """Notes what the bar of the training shows after each batch, each of which takes ten seconds of a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.shown = 0.0, list[tuple[float | None, ...]]()

    def on_train_start(self, *args: object) -> None:
        super().on_train_start(*args)  # type: ignore[arg-type]
        assert self.progress is not None
        self.progress.get_time = lambda: self.now

    def on_train_batch_end(self, *args: object) -> None:
        self.now += 10
        super().on_train_batch_end(*args)  # type: ignore[arg-type]
        task = self.train_progress_bar
        self.shown.append((task.completed, task.total, task.speed, task.time_remaining))


QUIET: dict[str, object] = {"limit_val_batches": 0, "log_every_n_steps": 1, "enable_progress_bar": True}


def test_steps_are_counted_where_several_batches_make_one(tmp_path: Path) -> None:
    bar = Counting()
    logger = CSVLogger(tmp_path)
    accumulating = trainer(bar, max_steps=6, accumulate_grad_batches=4, logger=logger, **QUIET)
    accumulating.fit(Talking(), Data())  # two epochs of 12 batches, of which the bar shows nothing
    assert [shown[:2] for shown in bar.shown] == [(number // 4, 6) for number in range(1, 25)]
    assert bar.train_progress_bar.elapsed == 240
    assert bar.shown[19][2:] == (1 / 40, 40)  # 40 seconds make a step, and one is to come


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before the epoch ended")
def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    quiet = QUIET | {"logger": CSVLogger(tmp_path)}
    first, bar = trainer(max_steps=3, **quiet | {"enable_progress_bar": False}), Counting()
    first.fit(Talking(), Data())
    first.save_checkpoint(tmp_path / "three.ckpt")
    path = tmp_path / "three.ckpt"
    trainer(bar, max_steps=6, **quiet).fit(Talking(), Data(), ckpt_path=path, weights_only=False)
    assert [shown[:2] for shown in bar.shown] == [(4, 6), (5, 6), (6, 6)]
    assert bar.shown[1][2:] == (1 / 10, 10)  # what was done before this start tells nothing of its speed


def test_batches_are_counted_where_epochs_end_the_training(tmp_path: Path) -> None:
    bar = Counting()
    quiet = QUIET | {"logger": CSVLogger(tmp_path)}
    trainer(bar, max_epochs=2, max_steps=100, accumulate_grad_batches=4, **quiet).fit(Talking(), Data())
    assert [shown[:2] for shown in bar.shown] == [(number, 12) for number in range(1, 13)] * 2
