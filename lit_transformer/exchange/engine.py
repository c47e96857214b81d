"""Translating with CTranslate2: our text pipeline and our scores around its search."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_transformer.alignment import Link
from lit_transformer.attention_view import AttentionView
from lit_transformer.checkpoints import CheckpointError
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.decoding import BeamSearch, GreedySearch
from lit_transformer.decoding.workers import possible_workers
from lit_transformer.errors import NoAttentionError
from lit_transformer.exchange.ctranslate import export_ctranslate2, package
from lit_transformer.exchange.tokenizer_files import tokenizer_from_files
from lit_transformer.interfaces import Hypothesis, InputError, Search, Translation
from lit_transformer.json_files import read_json
from lit_transformer.model_files import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, local_folder, weights_of
from lit_transformer.nn.products import Precision, check_precision
from lit_transformer.pair_scores import PairScore
from lit_transformer.translator import Translator
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS

Engine = Literal["torch", "ctranslate2"]

VOCABULARY_FILE = "shared_vocabulary.json"
_SOURCE_FILE = "converted_from.txt"
_COMPUTE_TYPES = {"float32": "float32", "bf16": "bfloat16", "int8": "int8"}
_PATIENCE = 3  # beams' worth of finished hypotheses to wait for; ours are then among them, see CTranslate2Translator
_NO_PENALTY = 1e-6  # an exponent that changes nothing, where 0 would let the search end at its first finished beam
_NO_ATTENTION = "is for CTranslate2, which shows no attention: take the checkpoint instead"
_FORBIDDEN = {PAD_ID, BOS_ID}  # which a translation never holds
_MANY = 256  # lines from which on each core translates batches of its own


def load_translator(path: str | Path, engine: Engine = "torch", **options: Any) -> Translator:
    """A translator of the engine that is asked for; both give the same translations.

    CTranslate2 does not draw translations at random, and neither aligns nor scores nor shows attention.

    Args:
        path: What ``Translator.from_pretrained`` takes; for ``ctranslate2`` also a folder that was exported for it.
        engine: ``torch``, or ``ctranslate2``, which needs its extra; the README says which is faster for what.
        options: Arguments of :class:`~lit_transformer.Translator` but network and tokenizer; ``compile`` is for
            ``torch`` only.

    Raises:
        InputError: If there is nothing to translate with, or the engine cannot do what is asked for.
    """
    return (CTranslate2Translator if engine == "ctranslate2" else Translator).from_pretrained(path, **options)


class CTranslate2Translator(Translator):
    """Translates text like :class:`~lit_transformer.Translator`, with CTranslate2 as the engine.

    CTranslate2 stops at a number of finished hypotheses and knows another length penalty. So it is asked for more
    hypotheses than needed, without penalty, and they are ranked by our score. A sentence that reaches the longest
    length allowed is closed with EOS, as our search does it. What is left of differences are ties up to rounding, and
    hypotheses that would be finished only after ``3 * beam_size`` others. With ``allow_unknown=False`` and with
    ``no_repeat_ngram_size`` scores differ, since what is ruled out takes no part in the engine's probabilities.

    Args:
        folder: A folder that ``export --format ctranslate2`` wrote.
        search: A ``BeamSearch`` or ``GreedySearch``; the default is the paper's beam search.
        max_tokens: Budget of a batch, in source tokens with padding.
        max_length: Longer source sentences are cut to this many tokens, EOS included, with a warning.
        precision: Of weights and arithmetic, as far as the processor has it.
        num_workers: Batches that are translated side by side; None takes one for each core, up to 16, if there are
            many lines.

    Raises:
        ValueError: If a number is below 1, or there is no such precision.
        CheckpointError: If the folder is not complete; once it translates, if CTranslate2 cannot load the model.
        InputError: If the package ctranslate2 is missing, the search is of another kind, or the processor lacks the
            precision.
    """

    def __init__(
        self,
        folder: str | Path,
        search: Search | None = None,
        max_tokens: int = 4096,
        max_length: int = 512,
        precision: Precision = "float32",
        num_workers: int | None = None,
    ) -> None:
        self._package = package()
        check_precision(precision)
        for name, value in {"max_tokens": max_tokens, "max_length": max_length, "num_workers": num_workers}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.folder = Path(folder)
        self.search = _known(search or BeamSearch())
        self.tokenizer, self._tokens, longest = _read_folder(self.folder)
        self._ids = {token: number for number, token in enumerate(self._tokens)}
        self.max_tokens, self.max_length, self._longest = max_tokens, min(max_length, longest), longest
        self.precision, self.num_workers = precision, num_workers
        self._device_name, self._device_index = "cpu", 0
        self._threads = 1
        self._engines: dict[int, Any] = {}  # the one in use, by its number of threads

    @classmethod
    def from_pretrained(cls, path: str | Path, *, revision: str | None = None, **options: Any) -> CTranslate2Translator:
        """Takes an exported folder, or converts a checkpoint once and keeps the result.

        The conversion lies in ``lit_transformer/ctranslate2`` of the user's cache folder (``XDG_CACHE_HOME``, else
        ``~/.cache``), and is made again when the checkpoint, this package or CTranslate2 has changed. Conversions of
        checkpoints that are gone are removed whenever a new one is made.

        Args:
            path: A folder of ``export --format ctranslate2``, or whatever ``Translator.from_pretrained`` takes.
            revision: Branch, tag or commit on the Hub; None is the main branch.
            options: Arguments of the constructor but the first.

        Raises:
            InputError: If ``compile=True`` is asked for, which is for the engine torch only.
        """
        if options.pop("compile", False):
            raise InputError("the engine ctranslate2 has no compile: leave it out, or take the engine torch")
        package()
        path = local_folder(path, revision)
        return cls(path if (path / "model.bin").is_file() else converted(path), **options)

    def to(self, device: torch.device | str) -> CTranslate2Translator:
        """Chooses the device, ``cpu``, ``cuda`` or one GPU of several, such as ``cuda:1``.

        Raises:
            InputError: If CTranslate2 cannot compute there.
        """
        chosen = torch.device(device)
        name, index = chosen.type, chosen.index or 0
        if name not in ("cpu", "cuda") or (name == "cuda" and self._package.get_cuda_device_count() <= index):
            raise InputError(f"the engine ctranslate2 cannot use the device {device} here; try --device cpu")
        self._device_name, self._device_index, self._engines = name, index, {}
        return self

    def attention(self, source: str, target: str | None = None) -> AttentionView:
        """Not possible: CTranslate2 does not tell what every head looks at."""
        raise NoAttentionError(f"{self.folder} {_NO_ATTENTION}")

    def align(self, pairs: Iterable[tuple[str, str]], layer: int | None = None) -> Iterator[list[Link]]:
        """Not possible: alignments are read off the attention."""
        raise NoAttentionError(f"{self.folder} {_NO_ATTENTION}")

    def score(self, pairs: Iterable[tuple[str, str]]) -> Iterator[PairScore]:
        """Not possible: the logits are CTranslate2's."""
        raise InputError(f"{self.folder} is for CTranslate2: take the checkpoint to score pairs")

    def save(self, folder: str | Path) -> Path:
        """Not possible: the weights are CTranslate2's."""
        raise InputError(f"{self.folder} is for CTranslate2 and cannot be written in another format")

    def translate(
        self, texts: Iterable[str], prefixes: Iterable[str] | None = None, buffer_size: int | None = None
    ) -> Iterator[list[Translation]]:
        """As with the engine torch, but without prefixes, whose log probabilities CTranslate2 does not count."""
        if prefixes is not None:
            raise InputError("the engine ctranslate2 takes no prefixes: leave them out, or take the engine torch")
        return super().translate(texts, buffer_size=buffer_size)

    def _suitable_workers(self, window: list[str]) -> int:
        """One: the engine has threads, no processes. How many they are is settled here."""
        cores = possible_workers() if self._device_name == "cpu" and len(window) >= _MANY else 1
        self._threads = self.num_workers or cores
        return 1

    def _engine(self) -> Any:
        threads = self._threads
        if threads not in self._engines:
            compute_type = _COMPUTE_TYPES[self.precision]
            if compute_type not in self._package.get_supported_compute_types(self._device_name):
                raise InputError(
                    f"the engine ctranslate2 has no precision {self.precision} on this {self._device_name}"
                )
            if not (self.folder / "model.bin").is_file():
                raise CheckpointError(
                    f"{self.folder} is gone, as when the checkpoint that it was made from has changed; load it again"
                )
            self._engines.clear()  # a second one would hold the weights again
            self._engines[threads] = self._loaded(threads, compute_type)
        return self._engines[threads]

    def _loaded(self, threads: int, compute_type: str) -> Any:
        try:
            return self._package.Translator(
                str(self.folder),
                device=self._device_name,
                device_index=self._device_index,
                compute_type=compute_type,
                inter_threads=threads,
                intra_threads=max(1, torch.get_num_threads() // threads),
                max_queued_batches=-1,
            )
        except (RuntimeError, ValueError) as error:  # of a file that names no model, or no text
            is_ours = (self.folder / _SOURCE_FILE).is_file()
            remedy = "remove the folder, and it is made anew" if is_ours else "export it again"
            raise CheckpointError(
                f"{self.folder} cannot be loaded by CTranslate2: {error}; if it is damaged, {remedy}"
            ) from None

    def _later(self, src: Tensor, prefixes: list[list[int]] | None = None) -> Callable[[], list[list[Hypothesis]]]:
        """Hands a batch ``(B, S)`` to the engine at once; the result is waited for when it is called."""
        rows = [[self._tokens[number] for number in row if number != PAD_ID] for row in src.tolist()]
        caps = [self.longest_output(len(row)) for row in rows]
        futures = self._translate(rows, max(caps) - 1, asynchronous=True)

        def wait() -> list[list[Hypothesis]]:
            found = [self._hypotheses(future.result()) for future in futures]
            for row, (ended, hypotheses) in enumerate(found):
                if not ended or any(len(one.tokens) >= caps[row] or _FORBIDDEN & {*one.tokens} for one in hypotheses):
                    found[row] = (True, self._closed(rows[row], caps[row]))
            return [hypotheses[: getattr(self.search, "n_best", 1)] for _, hypotheses in found]

        return wait

    def _decode(self, src: Tensor, prefixes: list[list[int]] | None = None) -> list[list[Hypothesis]]:
        return self._later(src)()

    def _translate(self, rows: list[list[str]], length: int, **options: Any) -> Any:
        beam_size = getattr(self.search, "beam_size", 1)
        several = {"patience": _PATIENCE, "num_hypotheses": beam_size * _PATIENCE} if beam_size > 1 else {}
        return self._engine().translate_batch(
            rows,
            beam_size=beam_size,
            length_penalty=_NO_PENALTY,
            max_decoding_length=max(1, length),
            min_decoding_length=0,  # a translation may be empty
            max_input_length=0,
            disable_unk=not self.search.allow_unknown,  # type: ignore[attr-defined]
            no_repeat_ngram_size=self.search.no_repeat_ngram_size,  # type: ignore[attr-defined]
            return_end_token=True,
            return_scores=True,
            **several,
            **options,
        )

    def _hypotheses(self, result: Any) -> tuple[bool, list[Hypothesis]]:
        """Whether all found hypotheses were finished, and those that were, best first."""
        end, finished = SPECIAL_TOKENS[EOS_ID], []
        for tokens, score in zip(result.hypotheses, result.scores, strict=True):
            if tokens and tokens[-1] == end:
                finished.append(self._scored(tokens[:-1], score * len(tokens) ** _NO_PENALTY))
        ended = len(finished) == len(result.hypotheses)
        return ended, sorted(finished, key=lambda one: -one.score)

    def _closed(self, row: list[str], cap: int) -> list[Hypothesis]:
        """The hypotheses of a sentence whose longest ones can only be closed, or that would hold PAD or BOS.

        What is suppressed takes no part in the engine's probabilities, so this is not done for all sentences.
        """
        never = [[SPECIAL_TOKENS[number]] for number in sorted(_FORBIDDEN)]
        result = self._translate([row], cap - 1, suppress_sequences=never)[0]
        _, found = self._hypotheses(result)
        end = SPECIAL_TOKENS[EOS_ID]
        cut = [tokens for tokens in result.hypotheses if not tokens or tokens[-1] != end]
        if cut:
            scored = self._engine().score_batch([row] * len(cut), cut, max_input_length=0)
            found += [self._scored(tokens, sum(one.log_probs)) for tokens, one in zip(cut, scored, strict=True)]
        return sorted(found, key=lambda one: -one.score)

    def _scored(self, tokens: Sequence[str], log_prob: float) -> Hypothesis:
        score = log_prob
        if isinstance(self.search, BeamSearch):
            score = float(self.search.score(torch.tensor(log_prob), len(tokens) + 1))
        return Hypothesis([self._ids[token] for token in tokens], log_prob, score)


def converted(path: Path) -> Path:
    """The folder for CTranslate2 that belongs to a checkpoint, written if it is not there yet.

    Raises:
        CheckpointError: If there is nothing there to translate with.
        InputError: If CTranslate2 has no such network.
    """
    path = weights_of(path)  # once, since a run may go on meanwhile
    source = path / WEIGHTS_FILE if path.is_dir() else path
    if not source.is_file():
        Translator.from_pretrained(path)  # says what is missing
    name, made_of = str(source.resolve()), _made_of(source)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_transformer" / "ctranslate2"
    prefix = hashlib.sha256(name.encode()).hexdigest()[:16]
    folder = cache / f"{prefix}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    if (folder / "model.bin").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as partial:
        export_ctranslate2(Translator.from_pretrained(path), Path(partial) / "model")
        (Path(partial) / "model" / _SOURCE_FILE).write_text(name, encoding="utf-8")
        _put(Path(partial) / "model", folder)
    for old in cache.glob("*-*"):
        if old != folder and (old.name.startswith(prefix) or _is_orphan(old)):
            shutil.rmtree(old, ignore_errors=True)
    return folder


def _is_orphan(folder: Path) -> bool:
    """Whether the checkpoint that a conversion was made from is there no more."""
    try:
        return not Path((folder / _SOURCE_FILE).read_text(encoding="utf-8")).exists()
    except (OSError, ValueError):
        return False


def _made_of(source: Path) -> str:
    """What a conversion depends on: the checkpoint or the files of an exported folder, and who converts."""
    files = [source]
    if source.name == WEIGHTS_FILE:
        files += [path for name in (CONFIG_FILE, TOKENIZER_FILE) if (path := source.with_name(name)).is_file()]
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{states} {version('lit-transformer')} {package().__version__}"


def _put(made: Path, folder: Path) -> None:
    """Gives a conversion its name, unless another process was quicker."""
    try:
        made.rename(folder)
    except OSError:
        if (folder / "model.bin").is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)  # what a deletion that was cut short has left
        made.rename(folder)


def _known(search: Search) -> Search:
    """The search, if CTranslate2 has one that is made alike."""
    if type(search) not in (BeamSearch, GreedySearch):
        raise InputError(f"the engine ctranslate2 has beam search and greedy search, no {type(search).__name__}")
    if getattr(search, "stop_early", False):
        raise InputError("the engine ctranslate2 searches to the end: leave stop_early out, or take the engine torch")
    return search


def _read_folder(folder: Path) -> tuple[SubwordTokenizer, list[str], int]:
    """Tokenizer, tokens in the order of their ids, and the longest sequence in tokens."""
    names = ("model.bin", VOCABULARY_FILE, "tokenizer.json", "tokenizer_config.json")
    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing is not None:
        raise CheckpointError(
            f"{folder} is not a folder that export --format ctranslate2 wrote: it has no {missing}; export it again"
        )
    try:
        tokens, content, settings = (read_json(folder / name) for name in names[1:])
        return tokenizer_from_files(content, settings, folder), tokens, int(settings["model_max_length"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from None
