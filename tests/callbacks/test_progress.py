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
