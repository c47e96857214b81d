"""The folder of a run: its configuration, and what becomes of an earlier run in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lit_transformer.callbacks.score_files import ScoreFiles
from lit_transformer.checkpoints import checkpoints_in
from lit_transformer.defaults import CALLBACK_DEFAULTS
from lit_transformer.interfaces import InputError
from lit_transformer.model_files import TOKENIZER_FILE, WEIGHTS_FILE


class RunFolder:
    """The files of a run, perhaps of an earlier one.

    Args:
        root: The folder.
        checkpoints: Where the run keeps its checkpoints: in ``root``, or elsewhere.
    """

    def __init__(self, root: Path, checkpoints: Path) -> None:
        self.root, self.checkpoints = root, checkpoints

    def require_room(self, config: Any) -> bool:
        """Refuses to mix two runs; says whether an earlier one is to be deleted.

        Args:
            config: The configuration of ``fit``.

        Raises:
            InputError: If the folder is that of a model, or holds the checkpoints of a run that this one does not
                continue and may not delete.
        """
        if not config.ckpt_path and (self.root / WEIGHTS_FILE).is_file():
            raise InputError(
                f"{self.root} is the folder of a model, not of a run: choose another --trainer.default_root_dir"
            )
        if config.trainer.fast_dev_run or not any(self.checkpoints.glob("*.ckpt")):
            return False
        if config.ckpt_path and Path(config.ckpt_path).resolve().parent == self.checkpoints.resolve():
            self._check_branch(Path(config.ckpt_path))
            return False
        if not config.ckpt_path and config.init_from is not None:
            self._spare(config.init_from)
        if not config.overwrite:
            other = " of another run" if config.ckpt_path else ""
            raise InputError(
                f"{self.checkpoints} already holds checkpoints{other}: continue that run with --ckpt_path last, start "
                "it anew with --overwrite true, or choose another --trainer.default_root_dir"
            )
        return True

    def _spare(self, init_from: str) -> None:
        """Refuses to begin with what the new run would take the place of."""
        path = Path(init_from).expanduser().resolve()  # a name of the Hub is no path inside
        if path == self.root.resolve() or path.is_relative_to(self.checkpoints.resolve()):
            raise InputError(
                f"--init_from {init_from} is part of the earlier run in {self.root}, whose place the new one would "
                "take: give the new one a folder of its own by --trainer.default_root_dir"
                + (" and --checkpoint.dirpath" if self._is_apart else "")
            )

    @property
    def _is_apart(self) -> bool:
        """Whether checkpoints lie outside of the folder."""
        return not self.checkpoints.resolve().is_relative_to(self.root.resolve())

    def check_teachers(self, teachers: Sequence[str]) -> None:
        """Refuses teachers among the files of the run, which may delete them.

        Raises:
            InputError: If one lies there.
        """
        for teacher in teachers:
            path = Path(teacher).expanduser().resolve()
            if path.is_relative_to(self.root.resolve()):
                raise InputError(
                    f"the teacher {teacher} lies in the folder of this run, {self.root}: choose another "
                    "--trainer.default_root_dir"
                )
            if path.is_relative_to(self.checkpoints.resolve()):
                raise InputError(
                    f"the teacher {teacher} lies where this run keeps its checkpoints, in {self.checkpoints}: choose "
                    "another --checkpoint.dirpath"
                )

    def _check_branch(self, given: Path) -> None:
        """Refuses to go on from a checkpoint that is not the last: names and means would mix what came of it."""
        steps = {one.path.resolve(): one.step for one in checkpoints_in(self.checkpoints) if not one.is_average}
        later = max(steps.values(), default=0)
        if later > steps.get(given.resolve(), later):
            raise InputError(
                f"{self.checkpoints} also holds checkpoints of later steps, up to {later}, which would be mixed with "
                f"those that follow {given.name}: give this run a folder of its own with --trainer.default_root_dir, "
                "or move the later ones away"
            )

    def keeping_tokenizer(self) -> Callable[[], None]:
        """What puts the tokenizer of the earlier run back if the new one replaced it, and ends before it may delete."""
        file, before = self.root / TOKENIZER_FILE, self._stamps()
        content = file.read_bytes() if file.is_file() else None

        def put_back() -> None:
            if content is not None and before.items() <= self._stamps().items():
                file.write_bytes(content)

        return put_back

    def _stamps(self) -> dict[Path, tuple[int, int]]:
        """What tells each checkpoint from a later one of its name."""
        found = {path: path.stat() for path in self.checkpoints.glob("*.ckpt")}
        return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}

    def clear(self, new_logs: Iterable[str | Path]) -> None:
        """Deletes checkpoints, logs, scores and predictions of the earlier run.

        Args:
            new_logs: Folders of the run that is beginning, which stay.
        """
        for path in self.checkpoints.glob("*.ckpt"):  # some strategies write folders
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        new = [Path(folder).resolve() for folder in new_logs]
        for path in (self.root / "logs").glob("*"):  # or curves would draw two runs as one
            if not any(folder.is_relative_to(path.resolve()) for folder in new):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        scored, predicted = (
            path_in_run(str(CALLBACK_DEFAULTS[f"{key}.output_path"]), self.root) for key in ("bleu", "writer")
        )
        for path in (*ScoreFiles.beside(scored), predicted):  # of the earlier network
            path.unlink(missing_ok=True)


def path_in_run(path: str | Path, root: Path) -> Path:
    """A path of the configuration, in which {run} is the folder of the run."""
    return Path(str(path).replace("{run}", str(root)))


def holds_run(folder: Path) -> bool:
    """Whether a training has left its configuration or checkpoints in a folder."""
    return (folder / "config.yaml").is_file() or any(folder.glob("checkpoints/*.ckpt"))


class RunConfig(SaveConfigCallback):
    """Keeps the parsed configuration as ``config.yaml`` in the folder of the run, once there is a batch to train on.

    Attributes:
        earlier: The run that this one takes the place of, deleted at the same moment; None if there is none.
    """

    earlier: RunFolder | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: text that cannot be read should leave no files."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes the file, once; scoring a run leaves it as it is.

        Only now has the run passed all checks of its beginning, so that an earlier one may go.
        """
        if trainer.is_global_zero and not self.already_saved:
            if self.earlier is not None:
                self.earlier.clear([logger.log_dir for logger in trainer.loggers if logger.log_dir is not None])
            self.save_config(trainer, pl_module, "fit")
        self.already_saved = True

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes all but what belongs to this one start: whether it resumed, and whether it overwrote.

        The weights that it began with stay: whoever starts the same run again begins with them too.
        """
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config.ckpt_path, config.overwrite = None, False
        self.parser.save(config, root / "config.yaml", skip_none=False, overwrite=True, multifile=False)
