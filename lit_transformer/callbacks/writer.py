"""Translations to a file: one line for each sentence, in the order of the corpus, from any number of processes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import lightning as L
from filelock import FileLock, Timeout
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_transformer.checkpoints import replacing
from lit_transformer.data.locks import let_go
from lit_transformer.data.textfiles import check_compression, compressing
from lit_transformer.interfaces import Hypothesis, InputError, TranslationBatch
from lit_transformer.translator import one_line

NOTHING = Hypothesis(tokens=[], log_prob=0.0, score=0.0)  # the translation of a line without text


def decoder(trainer: L.Trainer) -> Any:
    """The tokenizer of the trainer's data module.

    Raises:
        MisconfigurationException: If there is no data module, or it has no tokenizer.
    """
    tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
    if tokenizer is None:
        raise MisconfigurationException(
            "translations are turned into text by the data module's tokenizer, but the trainer has no data module with "
            "one; pass datamodule=TranslationDataModule(...) or another with an attribute tokenizer"
        )
    return tokenizer


class NumberedLines:
    """Collects text for numbered sentences in several processes and merges it in the order of the numbers.

    Each process appends to a file of its own beside the output. At the end one process merges them; only the numbers
    are held in memory, not the text.

    Args:
        path: The file to write in the end, on a file system that all processes share.
        rank: Number of this process, from 0.
        world_size: Number of processes.

    Raises:
        InputError: If nothing can be written there: it is a folder, the package for its ending is missing, or another
            command is writing it just now.
    """

    def __init__(self, path: Path, rank: int, world_size: int) -> None:
        self.path = path
        if path.is_dir():
            raise InputError(f"{path} is a folder, and a file is to be written there: name a file")
        check_compression(path.name)
        self.parts = [path.with_name(f"{path.name}.part{number}") for number in range(world_size)]
        self.part = self.parts[rank]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.part, path)
        self._file: TextIO = self.part.open("w", encoding="utf-8", newline="\n")

    def add(self, number: int, text: str) -> None:
        """Adds the text of a sentence: one or several lines."""
        self._file.write(json.dumps([number, text]) + "\n")

    def close(self) -> None:
        """Ends this process's part."""
        self._file.close()

    def discard(self) -> None:
        """Removes this process's part."""
        try:
            with suppress(OSError):  # of a disk that is full
                self.close()
        finally:
            self.part.unlink(missing_ok=True)
            self.release()

    def release(self) -> None:
        """Lets other commands write the file; to be called once all is merged."""
        if self._lock is not None and self._lock.is_locked:
            let_go(self._lock)

    def merge(self, allow_gaps: bool = False) -> int:
        """Writes the output from all closed parts, removes them, and returns the number of sentences.

        Args:
            allow_gaps: Whether numbers may be missing.

        Raises:
            InputError: If a sentence is missing or comes twice, or the part of a process is not here; or if the output
                cannot be written, which leaves the parts where they are.
        """
        try:
            places = self._places()
            self._check([number for number, _, _ in places], allow_gaps)
            self._write(places)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written: {error.strerror or error}; what was translated is in "
                f"{', '.join(str(path) for path in self.parts)}, each line with the number of its sentence"
            ) from None
        except InputError:
            self._remove_parts()
            raise
        self._remove_parts()
        return len(places)

    def _remove_parts(self) -> None:
        for path in self.parts:
            path.unlink(missing_ok=True)

    def _check(self, numbers: list[int], allow_gaps: bool) -> None:
        for number, following in pairwise(numbers):
            if number == following:
                raise InputError(f"sentence {number} was translated twice, so {self.path} was not written")
        for expected, number in enumerate(numbers):
            if number != expected and not allow_gaps:
                raise InputError(
                    f"sentence {expected} was not translated, so {self.path} was not written; the data must number its "
                    "sentences from 0 without gaps and give each to one process"
                )

    def _write(self, places: list[tuple[int, int, int]]) -> None:
        with replacing(self.path) as partial, ExitStack() as stack:
            parts = [stack.enter_context(part.open("rb")) for part in self.parts]
            output = stack.enter_context(compressing(partial, self.path.name))
            for _, part, offset in places:
                parts[part].seek(offset)
                output.write(json.loads(parts[part].readline())[1] + "\n")

    def _places(self) -> list[tuple[int, int, int]]:
        """Number, part and offset in bytes of every sentence, in order."""
        places = []
        for part, path in enumerate(self.parts):
            if not path.exists():
                raise InputError(
                    f"the translations of process {part} are not in {path}; all processes must see the same folder"
                )
            offset = 0
            with path.open("rb") as file:
                for line in file:
                    places.append((json.loads(line)[0], part, offset))
                    offset += len(line)
        return sorted(places)


class TranslationWriter(Callback):
    """Writes what ``predict`` translates to a text file: one line for each sentence, in the order of the corpus.

    Works in any number of processes that share a file system. The file appears only when it is complete.

    With ``scores`` a line is ``score<TAB>translation``. With ``n_best`` above 1 there are several lines for each
    sentence, best first, and each begins with the sentence's number, counted from 0: ``number<TAB>translation``, or
    ``number<TAB>score<TAB>translation``. Line breaks within a translation become spaces.

    Args:
        output_path: File to write, UTF-8, compressed if its name ends in ``.gz``, ``.xz``, ``.bz2`` or ``.zst``. Its
            folder is made if need be; an old file is replaced.
        n_best: How many translations of each sentence are written at most; the module's search must return as many.
            Above 1 each line begins with the sentence's number, from 0, where ``translate --n_best`` counts from 1.
        scores: Whether the length-normalised log probability (nats) stands before each translation.

    Raises:
        ValueError: If ``n_best`` is below 1.
        InputError: If the module's search returns fewer than ``n_best``, or a sentence is missing or came twice.
        MisconfigurationException: If the data module has no tokenizer, or its batches have no ``indices``.
    """

    def __init__(self, output_path: str | os.PathLike[str], n_best: int = 1, scores: bool = False) -> None:
        if n_best < 1:
            raise ValueError(f"n_best must be at least 1 translation, got {n_best}")
        self.output_path = Path(output_path)
        self.n_best = n_best
        self.scores = scores
        self._lines: NumberedLines | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens this process's part of the output."""
        decoder(trainer)  # fails before the first sentence is translated, not after
        found = getattr(getattr(pl_module, "search", None), "n_best", self.n_best)
        if found < self.n_best:
            raise InputError(
                f"{type(self).__name__} should write n_best={self.n_best} translations of each sentence, but the "
                f"module's search returns {found}; raise the search's n_best too, which a greedy search cannot"
            )
        self._lines = NumberedLines(self.output_path, trainer.global_rank, trainer.world_size)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Sequence[Sequence[Hypothesis]],
        batch: TranslationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the translations of a batch."""
        if self._lines is None:
            return
        numbers, tokenizer = sentence_numbers(batch), decoder(trainer)
        for number, hypotheses, is_blank in zip(numbers, outputs, batch.blank, strict=True):
            self._lines.add(number, self.format(number, [NOTHING] if is_blank else hypotheses, tokenizer))
        if trainer.received_sigterm:  # which Lightning's loop of predictions does not look at
            raise SIGTERMException

    def format(self, number: int, hypotheses: Sequence[Hypothesis], tokenizer: Any) -> str:
        """The line or lines of one sentence."""
        if not hypotheses:
            raise InputError(f"the search returned no translation of sentence {number}")
        lines = []
        for hypothesis in hypotheses[: self.n_best]:
            columns = [str(number)] if self.n_best > 1 else []
            columns += [f"{hypothesis.score:.4f}"] if self.scores else []
            lines.append("\t".join([*columns, one_line(tokenizer.decode(hypothesis.tokens))]))
        return "\n".join(lines)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Merges the parts of all processes."""
        lines, self._lines = self._lines, None  # what cannot be merged is not to be removed
        if lines is not None:
            merge_parts(trainer, lines, trainer.limit_predict_batches)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leaves nothing half-written."""
        if self._lines is not None:
            self._lines.discard()
            self._lines = None


def sentence_numbers(batch: TranslationBatch) -> list[int]:
    """The numbers of a batch's sentences.

    Raises:
        MisconfigurationException: If the batch doesn't number all of its sentences.
    """
    if len(batch.indices) != len(batch):
        raise MisconfigurationException(
            f"translations are written in the order of TranslationBatch.indices, but a batch of {len(batch)} sentences "
            f"has {len(batch.indices)}; let the data module number its sentences"
        )
    return batch.indices


def merge_parts(trainer: L.Trainer, lines: NumberedLines, limit_batches: float | None, quiet: bool = False) -> int:
    """Ends this process's part; once all processes have, the first one merges them, and knows how many there are.

    Args:
        trainer: Who knows the other processes.
        lines: The sentences of this process.
        limit_batches: The trainer's limit: a number of batches, or a share as a float. Under a limit sentences may
            be missing.
        quiet: Whether nothing is said of it.
    """
    lines.close()
    trainer.strategy.barrier("translations written")
    count = 0
    try:
        if trainer.is_global_zero:
            complete = isinstance(limit_batches, float) and limit_batches == 1.0
            count = lines.merge(allow_gaps=not complete)
    finally:
        trainer.strategy.barrier("translations merged")
        lines.release()
    if trainer.is_global_zero and not quiet:
        rank_zero_info(f"wrote the translations of {count} sentences to {lines.path}")
    return count


def _locked(part: Path, output: Path) -> FileLock | None:
    """A lock on a part, whose content a second command would destroy; None where files cannot be locked."""
    lock = FileLock(f"{part}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"another command is writing {output} just now: wait for it, or write elsewhere") from None
    except (OSError, NotImplementedError):  # as on some network file systems
        return None
    return lock
