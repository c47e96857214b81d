"""Checkpoint files: read without running code from them, found by their step, written whole or not at all."""

from __future__ import annotations

import logging
import os
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import hypot
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from lit_transformer.interfaces import InputError

logger = logging.getLogger(__name__)


class CheckpointError(InputError):
    """A file or folder that cannot be used as a checkpoint, in one sentence that says why."""


class Checkpoint(NamedTuple):
    """A checkpoint in a folder.

    Args:
        path: The file.
        step: The optimizer step that it was written at, as stored in it.
        is_average: Whether it is a mean of others, which has no state to train on with.
    """

    path: Path
    step: int
    is_average: bool


class UndrawnWeights(TorchFunctionMode):
    """Leaves out the drawing of random weights: most of the time that it takes to build a network.

    For a network whose weights come from a file at once; until then they are whatever was in memory. Only parameters
    are left out, which every file holds: a buffer of somebody's own may be drawn and never written. What else is drawn,
    also while ``trunc_normal_`` looks for values within its bounds, does not change the random numbers that follow.

    Example:
        >>> with UndrawnWeights():
        ...     layer = torch.nn.Linear(2, 1)
        >>> layer.load_state_dict({"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
        <All keys matched successfully>
    """

    def __enter__(self) -> UndrawnWeights:
        """Remembers where the random numbers stand."""
        self._state = torch.get_rng_state()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Lets the random numbers go on from there."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_rng_state(self._state)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hands back the parameter that a function was to fill at random; calls any other function."""
        options = kwargs or {}
        if func in _DRAWING and isinstance(tensor := args[0] if args else options["tensor"], nn.Parameter):
            return tensor
        return func(*args, **options)


_DRAWING = {
    *(Tensor.uniform_, Tensor.normal_),
    *(init.uniform_, init.normal_, init.kaiming_uniform_, init.kaiming_normal_),
}


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint as plain data and tensors; never runs code from the file.

    The tensors stay on disk until they are used, so it is cheap to look at something small in a large file.

    Raises:
        CheckpointError: If there is no such file or it is not a checkpoint.
    """
    if not Path(path).exists():
        raise CheckpointError(
            f"checkpoint {path} does not exist; give a .ckpt file, the folder of a run or, to translate or score, an "
            "exported folder"
        )
    if Path(path).suffix in (".yaml", ".yml"):
        folder = Path(path).parent
        name = f", {folder}," if (folder / "checkpoints").is_dir() else ""
        raise CheckpointError(
            f"{path} is a configuration, which holds no weights: name the folder of its run{name} instead"
        )
    try:
        content = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=True)
    except PermissionError:
        raise CheckpointError(f"{path} cannot be read: permission denied") from None
    except Exception as error:  # bytes that are no pickle can raise nearly anything
        raise CheckpointError(
            f"{path} is not a checkpoint file, or is damaged, or holds more than plain data"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "global_step"} <= content.keys():
        raise CheckpointError(f"{path} is not a Lightning checkpoint: it has no state_dict or no global_step")
    return content


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Checkpoint]:
    """The checkpoints of a folder and of its folder ``checkpoints``, as a run has one: averages, then by step.

    They are ordered by the step stored in them, because names and times change when files are copied. Of two with
    the same step the one named ``last*``, usually a copy, comes first. A file that cannot be read is passed over with
    a warning: it is what a run leaves behind that was killed while it wrote.
    """
    found = []
    for file in [*Path(folder).glob("*.ckpt"), *Path(folder).glob("checkpoints/*.ckpt")]:
        step = _step_at_front(file)
        if step is not None:
            found.append(Checkpoint(file, step, is_average=False))
            continue
        try:
            content = read_checkpoint(file)
        except CheckpointError as error:
            logger.warning("passing over a checkpoint: %s", error)
            continue
        found.append(Checkpoint(file, int(content["global_step"]), "averaged_from" in content))
    return sorted(found, key=lambda c: (not c.is_average, c.step, not c.path.name.startswith("last"), c.path.name))


def _step_at_front(path: Path) -> int | None:
    """The step of a whole file that Lightning wrote, which puts it at the front; None where all must be read for it.

    To unpickle the rest, a tokenizer and the state of an optimizer among it, takes longer than to translate a
    sentence, and a run has many checkpoints. A file that was cut short has no list of its parts at its end.
    """
    try:
        with zipfile.ZipFile(path) as file:
            data = file.read(next(name for name in file.namelist() if name.endswith("/data.pkl")))  # with checksum
        return None if b"averaged_from" in data else _first_step(data)
    except Exception:  # whatever is wrong, reading all of it tells
        return None


def _first_step(data: bytes) -> int | None:
    """The step of a pickled dictionary with it in front, after ``epoch``."""
    key = None
    for code, value, _ in pickletools.genops(data):
        if code.name == "BINUNICODE" and value in ("epoch", "global_step"):
            key = value
        elif code.name in ("BININT", "BININT1", "BININT2") and isinstance(value, int):
            if key == "global_step":
                return value
        elif code.name not in (("PROTO", "EMPTY_DICT", "BINPUT", "MARK") if key is None else ("BINPUT",)):
            return None
    return None


def newest_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """The checkpoint with the highest step of a run; an average only if there is nothing else.

    Raises:
        CheckpointError: If there is none.
    """
    found = checkpoints_in(folder)
    if not found:
        raise CheckpointError(
            f"no readable checkpoint (*.ckpt) in {folder} or {Path(folder) / 'checkpoints'}; train with fit first"
        )
    return found[-1].path


def weights_norm(module: nn.Module) -> float:
    """The Euclidean norm of all weights: a number that two trainings do not share, so it tells whose a score is."""
    return hypot(*(float(torch.linalg.vector_norm(parameter.detach().float())) for parameter in module.parameters()))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that becomes ``path`` only if all went well; else nothing is left behind.

    The folder is made if need be. A link stays one, and the file that it names is replaced. What is not a file, such as
    a pipe, or goes by a link of the system, such as ``/dev/stdout``, is written to directly.
    """
    is_of_system = path.is_symlink() and path.absolute().parts[1:2] in (("dev",), ("proc",))
    if path.exists() and (is_of_system or not path.is_file()):
        yield path
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
