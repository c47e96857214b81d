"""Scores of real translations during training: decode, compare with what people wrote, show a few."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import Metric

from lit_transformer.callbacks.corpus_scores import CorpusScores, score_corpora, table_of
from lit_transformer.callbacks.score_files import ScoreFiles, SentenceCounts, describe_run, describe_score
from lit_transformer.callbacks.writer import NumberedLines, decoder, merge_parts, sentence_numbers
from lit_transformer.class_paths import class_path_of
from lit_transformer.decoding import BeamSearch
from lit_transformer.decoding.beam import PenaltyKind
from lit_transformer.interfaces import InputError, Search, TranslationBatch
from lit_transformer.metrics import CorpusBLEU, CorpusChrF, CorpusScore, CorpusTER, Interval
from lit_transformer.sharding import is_sharded
from lit_transformer.translator import one_line


class BLEUEvaluation(Callback):
    """Translates the validation and test sentences and scores them against the raw text of the corpus.

    Logs ``val/bleu`` and ``val/chrf``, ``test/bleu`` and ``test/chrf``, in percent: scores of the whole corpus over all
    processes, equal to sacrebleu's. Says with which sacrebleu signature, which is also kept in checkpoints, and prints
    a few translations: the sentences with the lowest numbers among those of the first process. The sanity check before
    training translates one sentence, so that an error shows at once.

    ``validate`` and ``test`` add TER, which is too slow for validations in between, and 95 % intervals by sacrebleu's
    bootstrap resampling, the same for every number of processes. Of several corpora they also score each on its own.

    A ``search`` that the module was given is what is scored, as it is what ``predict`` writes; the arguments of the
    beam search count where it has none. A module of one's own needs ``LitTransformer``'s ``generate(src, search)``,
    and the batches of its data ``sources``, ``references`` and ``indices``.

    Source: Vaswani et al. 2017, section 6.1, for beam size, length penalty and the longest translation.

    Args:
        beam_size: Open translations that the search keeps for each sentence.
        length_penalty: Exponent of the length normalisation; 0 prefers short translations, larger values longer ones.
        max_extra_length: Longest translation, in tokens beyond the length of its source.
        tokenize: sacrebleu's name of the way BLEU splits text into words: ``13a`` for most languages, ``zh`` or
            ``char`` for those written without spaces, ``ko-mecab`` and ``ja-mecab`` with further packages.
        metric: Further scores, one or a list: ``MosesBLEU``, or any torchmetrics text metric whose ``update`` takes
            translations and references, one or several to a sentence. Each is logged under its ``name``, or else its
            class name in small letters, and one of several numbers under that name with theirs behind it; one named
            ``bleu``, ``chrf`` or ``ter`` takes the place of the built-in one.
        num_samples: Translations that are printed each time.
        every_n_validations: Translate in each n-th validation of the training only, as it takes longer than the loss;
            0 for never. ``validate`` and ``test`` always do.
        output_path: File for the translations of ``test``, one a line, in the order of the corpus. Beside
            ``test.hyp.txt`` the references are in ``test.ref.txt``, and in ``test.scores.json`` the scores, of each
            corpus too, with signatures, intervals, seed, checkpoints, versions and configuration.
        penalty_kind: ``gnmt`` for the length normalisation of the paper, ``power`` for that of fairseq, Marian and
            Hugging Face: length to the power of ``length_penalty``.
        allow_unknown: Whether translations may hold the token for unknown words.
        stop_early: Whether a sentence is done as soon as ``beam_size`` translations are finished, as in fairseq:
            faster, but better ones may be missed.
        no_repeat_ngram_size: No n-gram of so many tokens occurs twice in a translation; 0 allows all.

    Raises:
        ValueError: If an argument is out of range, two metrics have one name, or sacrebleu has no such tokenization.
        InputError: If the weights are still divided over processes, which would wait for each other for ever in
            decoding. ``LitTransformer`` gathers them before, under ``ModelParallelStrategy``.
        MisconfigurationException: If the data module has no tokenizer, there are several dataloaders, or early
            stopping watches a score that only some of the validations have.
    """

    def __init__(
        self,
        beam_size: int = 4,
        length_penalty: float = 0.6,
        max_extra_length: int = 50,
        tokenize: str = "13a",
        metric: Metric | list[Metric] | None = None,
        num_samples: int = 3,
        every_n_validations: int = 1,
        output_path: str | os.PathLike[str] | None = None,
        penalty_kind: PenaltyKind = "gnmt",
        allow_unknown: bool = True,
        stop_early: bool = False,
        no_repeat_ngram_size: int = 0,
    ) -> None:
        if num_samples < 0 or every_n_validations < 0:
            raise ValueError(
                f"num_samples and every_n_validations must be at least 0, got {num_samples} and {every_n_validations}"
            )
        self.search = BeamSearch(
            beam_size,
            length_penalty,
            max_extra_length,
            allow_unknown=allow_unknown,
            stop_early=stop_early,
            penalty_kind=penalty_kind,
            no_repeat_ngram_size=no_repeat_ngram_size,
        )
        own = named_metrics(metric)
        self.metrics: dict[str, Metric] = {
            "bleu": CorpusBLEU(tokenize),
            "chrf": CorpusChrF(),
            "ter": CorpusTER(),
            **own,
        }
        self._slow = {"ter"} - own.keys()
        self._several = {name for name, metric in own.items() if _takes_several_references(metric)}
        self.num_samples = num_samples
        self.every_n_validations = every_n_validations
        self.output_path = None if output_path is None else Path(output_path)
        self.num_validations = 0
        self.scores: dict[str, float] = {}
        self.config: dict[str, Any] | None = None  # for the file of scores, where a command line knows it
        self.folder: str | None = None  # whose exported weights are scored, which no trainer knows
        self._running = False
        self._samples: list[tuple[int, str, str, str]] = []
        self._now: dict[str, Metric] = {}
        self._counts: SentenceCounts | None = None
        self._lines: list[NumberedLines] = []

    @property
    def signatures(self) -> dict[str, str]:
        """The signature of each score that has one."""
        return {name: metric.signature for name, metric in self.metrics.items() if isinstance(metric, CorpusScore)}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses early stopping by a score that not every validation has: it would judge an old one again."""
        own = {f"val/{name}" for name in self.metrics}
        for callback in trainer.callbacks if self.every_n_validations != 1 else []:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.monitor in own:
                raise MisconfigurationException(
                    f"{type(callback).__name__} watches {callback.monitor} at each validation, but every_n_validations="
                    f"{self.every_n_validations} scores only some of them: set it to 1, or watch val/loss"
                )

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins a score, if it is time for one."""
        self._running = False
        if trainer.sanity_checking:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self.num_validations += 1
            if not self.every_n_validations or self.num_validations % self.every_n_validations:
                return
        self._begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: TranslationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Translates a batch and counts its matches."""
        if trainer.sanity_checking and self.every_n_validations and not batch_idx:
            self._refuse_sharded(trainer, pl_module)
            self._translate(trainer, pl_module, batch.src[:1])
        elif self._running:
            self._count(trainer, pl_module, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the scores and shows some translations."""
        if self._running:
            self._report(trainer, pl_module, "val", trainer.val_dataloaders)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins a score."""
        self._begin(trainer, pl_module)
        if self.output_path is not None:
            hypotheses, references, _ = ScoreFiles.beside(self.output_path)
            place = trainer.global_rank, trainer.world_size
            for path in (hypotheses, references):
                self._lines.append(NumberedLines(path, *place))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: TranslationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Translates a batch and counts its matches."""
        self._count(trainer, pl_module, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the scores, shows some translations, and writes all of them and the scores if asked."""
        intervals, corpora = self._report(trainer, pl_module, "test", trainer.test_dataloaders)
        size = 0
        is_second = False
        while self._lines:  # what cannot be merged is not to be removed
            size = merge_parts(trainer, self._lines.pop(0), trainer.limit_test_batches, quiet=is_second)
            is_second = True
        if self.output_path is not None and trainer.is_global_zero:
            files = ScoreFiles.beside(self.output_path)
            run = describe_run(trainer, pl_module, self.folder)
            search = self.search_of(pl_module)
            files.write({**self._described(intervals, corpora, search), "num_sentences": size, **run})
            rank_zero_info(
                f"wrote the references and the scores beside it: {files.references.name}, {files.scores.name}"
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leaves nothing half-written."""
        for lines in self._lines:
            lines.discard()
        self._lines = []

    def state_dict(self) -> dict[str, Any]:
        """The last scores, what they mean, and how many validations there were."""
        return {"scores": self.scores, "signatures": self.signatures, "num_validations": self.num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting validations where the checkpoint stopped."""
        self.scores = dict(state_dict["scores"])
        self.num_validations = state_dict["num_validations"]

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._refuse_sharded(trainer, pl_module)
        decoder(trainer)
        self._running = True
        self._samples = []
        in_between = trainer.state.fn == TrainerFn.FITTING
        self._now = {name: metric for name, metric in self.metrics.items() if not (in_between and name in self._slow)}
        kept = {name: metric for name, metric in self._now.items() if isinstance(metric, CorpusScore)}
        self._counts = None if in_between else SentenceCounts(kept)
        for metric in self._now.values():
            metric.to(pl_module.device).reset()  # Lightning moves only what belongs to the module
            if isinstance(metric, CorpusScore):
                metric.update([], [])  # a process without sentences still takes part in the sum

    def _refuse_sharded(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """``LitTransformer`` has gathered its weights by now, if ``ModelParallelStrategy`` has divided them."""
        if trainer.world_size > 1 and (isinstance(trainer.strategy, FSDPStrategy) or is_sharded(pl_module)):
            raise InputError(
                f"{type(self).__name__} cannot translate with weights that are sharded over processes; shard with "
                "LitTransformer and ModelParallelStrategy (configs/trainer/fsdp.yaml), or set every_n_validations=0 "
                "and score a checkpoint with test on one device or with DDP"
            )

    def search_of(self, pl_module: Any) -> Search:
        """How translations are made that are scored: the search of the module if it was given one, else our own."""
        return pl_module.search if getattr(pl_module, "has_own_search", False) else self.search

    def _translate(self, trainer: L.Trainer, pl_module: Any, src: Tensor) -> list[str]:
        with trainer.precision_plugin.forward_context(), torch.no_grad():
            hypotheses = pl_module.generate(src, self.search_of(pl_module))
        tokenizer = decoder(trainer)
        return [tokenizer.decode(found[0].tokens) for found in hypotheses]

    def _count(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: TranslationBatch, dataloader_idx: int
    ) -> None:
        if dataloader_idx:
            raise MisconfigurationException(
                f"{type(self).__name__} scores one set of sentences, but the trainer got several dataloaders; pass one"
            )
        for name in ("sources", "references"):
            if len(getattr(batch, name)) != len(batch):
                raise MisconfigurationException(
                    f"{type(self).__name__} scores text, but a batch of {len(batch)} sentences has "
                    f"{len(getattr(batch, name))} {name}; let the data module hand on the raw lines"
                )
        found = zip(self._translate(trainer, pl_module, batch.src), batch.blank, strict=True)
        texts = ["" if is_blank else one_line(text) for text, is_blank in found]
        references = [one_line(text) for text in batch.references]  # scored as they are written
        numbers = sentence_numbers(batch)
        kept = self._counts.scores if self._counts else {}
        rows = {name: score.count(texts, references) for name, score in kept.items()}
        for name, metric in self._now.items():
            expected: list[Any] = [[one] for one in references] if name in self._several else references
            metric.update(texts, expected, *([rows[name]] if name in rows else []))
        if self._counts:
            self._counts.add(numbers, rows)
        samples = zip(numbers, batch.sources, batch.references, texts, strict=True)
        self._samples = sorted([*self._samples, *samples])[: self.num_samples]
        for lines, written in zip(self._lines, (texts, references), strict=False):
            for number, text in zip(numbers, written, strict=True):
                lines.add(number, text)

    def _report(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str, batches: Any
    ) -> tuple[dict[str, Interval], list[CorpusScores]]:
        """Processes meet here and nowhere before, because they may have different numbers of batches.

        Returns the intervals and the scores of each of several corpora, which only the first process knows.
        """
        several = trainer.world_size > 1
        for name, metric in self._now.items():
            value = metric.compute()
            for ending, number in _entries(value):
                key = f"{stage}/{name}{ending}"
                pl_module.log(key, number, prog_bar=name == "bleu", sync_dist=several, batch_size=1)
                self.scores[key] = float(number)
        numbers, gathered = self._counts.gather(pl_module.device) if self._counts else (None, {})
        intervals = {}
        for name, metric in self._now.items():
            if not isinstance(metric, CorpusScore) or not trainer.is_global_zero:
                continue
            text = f"{stage}/{name} {self.scores[f'{stage}/{name}']:.2f}"
            if name in gathered:
                intervals[name] = metric.interval(gathered[name])
                text += f", 95 % interval {intervals[name].low:.2f} to {intervals[name].high:.2f}"
            rank_zero_info(f"{text} ({metric.interval_signature() if name in gathered else metric.signature})")
        corpora: list[CorpusScores] = []
        if self._counts and numbers is not None and trainer.is_global_zero:
            corpora = score_corpora(getattr(batches, "sections", []), numbers, gathered, self._counts.scores)
        if len(corpora) > 1:
            rank_zero_info(f"\n{table_of(corpora)}")
        if self._samples:
            samples = "\n\n".join(self.format(*sample) for sample in self._samples)
            pl_module.print(f"\n{samples}\n")
        return intervals, corpora

    def _described(self, intervals: dict[str, Interval], corpora: list[CorpusScores], search: Search) -> dict[str, Any]:
        """The part of the file of scores that the trainer does not know."""
        scores = {
            key.removeprefix("test/"): describe_score(value, metric, intervals.get(name))
            for name, metric in self._now.items()
            for key, value in self.scores.items()
            if key == f"test/{name}" or (key.startswith(f"test/{name}_") and f"test/{name}" not in self.scores)
        }
        searched = ("beam_size", "length_penalty", "penalty_kind", "stop_early")
        bounds = ("max_extra_length", "allow_unknown", "no_repeat_ngram_size")
        names = (*searched, *bounds, "temperature", "top_k", "top_p", "seed")
        known = {name: getattr(search, name) for name in names if hasattr(search, name)}
        return {
            "scores": scores,
            "corpora": [one.described(self._now) for one in corpora],
            "search": known if search is self.search else {"class_path": class_path_of(type(search)), **known},
            "config": self.config,
        }

    def format(self, number: int, source: str, reference: str, translation: str) -> str:
        """How a sample is printed."""
        return f"sentence {number}\n  source       {source}\n  reference    {reference}\n  translation  {translation}"


def _entries(value: Any) -> list[tuple[str, Any]]:
    """What a metric has computed, as numbers with the endings of their names."""
    return [(f"_{name}", one) for name, one in value.items()] if isinstance(value, dict) else [("", value)]


def _takes_several_references(metric: Metric) -> bool:
    """Whether ``update`` says that the references of each sentence are a list, as torchmetrics' ``BLEUScore`` does."""
    try:
        given = list(get_type_hints(type(metric).update).items())[1]
    except (NameError, TypeError, IndexError):  # says nothing, or nothing that can be found out
        return False
    inner = get_args(given[1])
    return bool(inner) and get_origin(inner[0]) in (Sequence, list)


def named_metrics(metric: Metric | list[Metric] | None) -> dict[str, Metric]:
    """The metrics by the names that they are logged under.

    Raises:
        ValueError: If two have the same name.
    """
    found: dict[str, Metric] = {}
    for one in metric if isinstance(metric, list) else [metric] if metric else []:
        name = getattr(one, "name", type(one).__name__.lower())
        if name in found:
            raise ValueError(f"two metrics are named {name!r}; give one of them another name")
        found[name] = one
    return found
