"""The data plug for Lightning: corpora in, batches out, and the exact place in the stream inside each checkpoint."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from math import gcd
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerStatus

from lit_transformer.data.batching import LengthLimits, TokenBudgetBatches
from lit_transformer.data.bpe_dropout import BPEDropout
from lit_transformer.data.cache import TokenCache, write_or_open_cache
from lit_transformer.data.cached_pools import CachedPools
from lit_transformer.data.checks import check_accumulation, check_stream, check_tags, check_targets, warn_of_untagged
from lit_transformer.data.corpus import ParallelCorpus
from lit_transformer.data.cursor import Cursor, joined, start_of
from lit_transformer.data.dropped import DroppedRows
from lit_transformer.data.evaluation import EvaluationBatches
from lit_transformer.data.filters import OnBadRow, in_words
from lit_transformer.data.mixing import MixedRows, Mixing
from lit_transformer.data.pools import Pool, PoolStream
from lit_transformer.data.position import StreamPosition
from lit_transformer.data.stream import TrainingBatches
from lit_transformer.data.textfiles import expand
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.data.tokenizer_choice import TokenizerChoice
from lit_transformer.interfaces import SentencePair, TranslationBatch

logger = logging.getLogger(__name__)


class TranslationDataModule(L.LightningDataModule):
    """Streams sentence pairs as batches of token ids, and resumes exactly where a checkpoint was written.

    Several training corpora are mixed in proportion to their sizes; each sentence comes once in an epoch. With
    ``weights`` or ``temperature`` small corpora get a larger share: a corpus that is over begins again, and an epoch is
    over when all corpora have been read to their ends, so that each sentence comes at least once. Rows are read in
    pools; a pool is turned into ids, sorted by length, cut by the token budget and shuffled, all decided by
    ``seed``. With ``trainer.max_steps`` alone the stream is endless; with ``max_epochs`` an epoch is one pass.
    Every process makes the same steps on its own share, and validation, test and prediction see each sentence once.

    The tokenizer is made from the training text if there is no file yet, and goes into every checkpoint.

    In a training loop of your own, on one process, call ``prepare_data()`` and ``setup("fit")``, then iterate over
    ``train_dataloader()`` once for each epoch. What was handed out counts as trained on: after a ``break`` the next
    iteration goes on, and ``state_dict()`` holds that place for ``load_state_dict()`` of another data module.

    Source: Vaswani et al. 2017, section 5.1.

    Args:
        train: Training text: one corpus or a list of them.
        val: Text to validate on, read one after another.
        test: Text to test on.
        predict: Text to translate; it needs no target side.
        vocab_size: Size of the target vocabulary, and of the source vocabulary if they are shared, in tokens.
        src_vocab_size: Size of a source vocabulary of its own, in tokens; None shares one vocabulary.
        tokenizer: Another recipe than byte-pair encoding, or a tokenizer that is trained already. A recipe takes over
            the sizes above; if it sets its own, they must be the same.
        tokenizer_path: File to take the tokenizer from; ``fit`` writes it if it is not there. None means
            ``tokenizer.json`` in the ``default_root_dir`` of the Trainer, or without one in the folder one works in;
            it is made anew when text or recipe change.
        tokenizer_max_pairs: Sentence pairs of the training text that a new tokenizer is made from, at most.
        max_tokens: Budget of a training batch on one process: that many source and that many target positions,
            padding included, in tokens.
        eval_max_tokens: The same for validation, test and prediction, in tokens.
        max_length: Longest sentence in tokens with EOS. Longer ones are dropped from training, cut elsewhere.
        max_length_ratio: Largest ratio of the two lengths of a training pair; None allows any.
        pool_size: Rows that are sorted and shuffled together. More means less padding and more memory.
        weights: Share of each training corpus, relative to the others, in the order of ``train``: ``[3, 1]`` draws
            three rows from the first for each from the second.
        temperature: Draws from a training corpus in proportion to ``size ** (1 / temperature)``: 1 keeps to the sizes
            and gives each sentence once in an epoch, 2 to 5 helps small corpora, and very large ones make all shares
            the same. Streams that do not tell their sizes need ``weights`` instead, or ``cache_path`` and a tokenizer.
        on_bad_row: What to do with a training row without one of the columns, with something else than text in it, or
            with an empty side: ``skip`` counts it and goes on, ``error`` stops and names it. A corpus whose first row
            has not the right columns is refused in any case, and validation, test and prediction never skip.
        num_lanes: Parts that the training text is dealt to; batches come from all of them in turn. Set it to the
            number of processes, or a multiple of that, to let each process read and tokenise its own part only. It
            decides the order of the batches, so runs that shall be the same on 1 and on 8 processes need the same
            number. Each lane has a pool of its own in memory.
        cache_path: File to keep the ids of the training text in, so that it is read and tokenised only once: ``fit``
            writes it if it is not there, or anew when text or tokenizer change. All processes map it into memory,
            which needs no lanes, and every epoch shuffles the whole text instead of pools. None streams the text.
        num_workers: Processes that prepare training batches in the background; 0 prepares them in between. With
            ``max_epochs`` they are started anew for each epoch and tokenise all of the text again, where 0 keeps the
            first 20 million ids for the next epoch; with ``max_steps`` alone they stay. A small text that is read in
            epochs needs none, and a large one is tokenised only once with ``cache_path``.
        shuffle: Whether the training batches come in random order.
        seed: Decides the order of the training stream, and dropout.
        bpe_dropout: Probability to pass over a merge of byte-pair encoding, which cuts the same words into other
            subwords in each epoch; 0.1 helps small corpora (Provilkov et al. 2020). Training only.

    Raises:
        ValueError: If an argument is out of range, or the sizes of ``tokenizer`` differ from those given.
    """

    def __init__(
        self,
        train: list[ParallelCorpus] | ParallelCorpus | None = None,
        val: list[ParallelCorpus] | ParallelCorpus | None = None,
        test: list[ParallelCorpus] | ParallelCorpus | None = None,
        predict: list[ParallelCorpus] | ParallelCorpus | None = None,
        vocab_size: int = 37_000,
        src_vocab_size: int | None = None,
        tokenizer: SubwordTokenizer | None = None,
        tokenizer_path: str | None = None,
        tokenizer_max_pairs: int = 2_000_000,
        max_tokens: int = 25_000,
        eval_max_tokens: int = 4096,
        max_length: int = 256,
        max_length_ratio: float | None = None,
        weights: list[float] | None = None,
        temperature: float = 1.0,
        on_bad_row: OnBadRow = "skip",
        pool_size: int = 32_000,
        num_lanes: int = 1,
        cache_path: str | None = None,
        num_workers: int = 0,
        shuffle: bool = True,
        seed: int = 1,
        bpe_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer test sentences than processes
        given = {"train": train, "val": val, "test": test, "predict": predict}
        self.corpora = {part: _listed(part, corpora) for part, corpora in given.items()}
        self.tokenizer_max_pairs = tokenizer_max_pairs
        self.max_tokens, self.eval_max_tokens = max_tokens, eval_max_tokens
        self.limits = LengthLimits(max_length, max_length_ratio)
        self.mixing, self.on_bad_row = Mixing(weights, temperature), on_bad_row
        self.pool_size, self.num_lanes, self.num_workers = pool_size, num_lanes, num_workers
        self.cache_path = None if cache_path is None else expand(cache_path)
        self.shuffle, self.seed, self.bpe_dropout = shuffle, seed, bpe_dropout
        self._check_numbers()
        tags = [corpus.src_tag for corpus in self.corpora["train"] if corpus.src_tag]
        self._choice = TokenizerChoice(tokenizer, tokenizer_path, vocab_size, src_vocab_size, tags)
        self.cursor: Cursor = start_of(0, num_lanes)
        self._dropped = DroppedRows()
        self._given_limit: int | float | None = None  # the trainer's limit_val_batches, while it is 0

    @property
    def dropped(self) -> Counter[str]:
        """Training rows left out so far, by reason, each time that they come; a resumed run goes on counting.

        The reasons are ``missing column``, ``not text``, ``empty``, ``rejected`` by ``read_row``, ``overlong``,
        ``ratio`` and those of the filters of the corpora. A process counts the rows of its own lanes.
        """
        return self._dropped.up_to(self.cursor)

    @property
    def tokenizer(self) -> SubwordTokenizer:
        """The tokenizer of all batches.

        Raises:
            MisconfigurationException: If there is none yet.
            CorpusError: If ``tokenizer_path`` is not there, and no checkpoint has brought one.
        """
        tokenizer = self._choice.trained
        if tokenizer is None:
            raise MisconfigurationException(
                "there is no tokenizer yet: give ckpt_path, set tokenizer_path to a trained one, or run fit first"
            )
        return tokenizer

    def build_batches(self, max_tokens: int, shuffle: bool) -> TokenBudgetBatches:
        """What cuts pools into batches. Override this to use a subclass of ``TokenBudgetBatches``."""
        return TokenBudgetBatches(max_tokens, shuffle)

    def prepare_data(self) -> None:
        """Makes tokenizer and cache, or checks the files of an earlier run; on one process of each machine."""
        is_fit = self._is_fit and bool(self.corpora["train"])
        for part in ("train", "val") if self._is_fit else ():
            check_targets(self.corpora[part], part)  # before the text is read, which takes a while
        self._load_tokenizer(is_fit)
        if self.cache_path is not None and is_fit:
            self._cache(self.cache_path)

    def setup(self, stage: str) -> None:
        """Loads the tokenizer on every process, and readies the stream for ``fit``.

        Raises:
            InputError: If a ``GradientAccumulationScheduler`` would change the steps that the stream is cut into.
        """
        self._load_tokenizer(stage == "fit" and bool(self.corpora["train"]))
        trainer: Any = self._running  # Lightning does not annotate the attributes that are set here
        if stage != "fit" or trainer is None:
            return
        check_accumulation(trainer.callbacks)
        self.cursor, self._dropped = start_of(0, self.num_lanes), DroppedRows()
        others = [callback for callback in trainer.callbacks if not isinstance(callback, StreamPosition)]
        trainer.callbacks = [StreamPosition(self), *others]
        is_ours = type(self).val_dataloader is TranslationDataModule.val_dataloader
        if is_ours and not self.corpora["val"]:
            self._given_limit = trainer.limit_val_batches
            trainer.limit_val_batches = 0  # the only way to say so that Lightning takes without a warning

    def teardown(self, stage: str) -> None:
        """Gives the trainer its own limit back, so that it can validate with other data afterwards."""
        trainer: Any = self.trainer
        if trainer is not None and self._given_limit is not None:
            trainer.limit_val_batches, self._given_limit = self._given_limit, None

    def on_exception(self, exception: BaseException) -> None:
        """Does the same after an interruption, when there is no teardown."""
        self.teardown("fit")

    def train_dataloader(self) -> TrainingBatches:
        """The endless stream, or one pass of it, from the cursor on; without a Trainer one pass each time."""
        trainer = self._running
        if trainer is None:
            self._check_alone()
            return TrainingBatches(
                self._pools(False), self._start, num_workers=self.num_workers, on_pool=self._count, on_batch=self._move
            )
        endless = trainer.max_steps > 0 and trainer.max_epochs in (None, -1)
        return TrainingBatches(
            self._pools(endless),
            self._start,
            trainer.global_rank,
            trainer.world_size,
            self.num_workers,
            trainer.max_steps * trainer.accumulate_grad_batches if endless else None,
            self._count,
            trainer.strategy.root_device.type == "cuda",
            self._agree,
        )

    def val_dataloader(self) -> EvaluationBatches:
        """The validation sentences."""
        return self._evaluation("val")

    def test_dataloader(self) -> EvaluationBatches:
        """The test sentences."""
        return self._evaluation("test")

    def predict_dataloader(self) -> EvaluationBatches:
        """The sentences to translate."""
        return self._evaluation("predict")

    def state_dict(self) -> dict[str, Any]:
        """The place in the training stream, what it depends on, and the tokenizer; plain data."""
        cursor, dropped = self._of_all_lanes()
        return {
            "cursor": cursor,
            "dropped": dict(dropped),
            "stream": self._stream_settings(),
            "tokenizer": self.tokenizer.to_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the tokenizer of a checkpoint; to resume training also the place in the stream.

        Raises:
            CorpusError: If data or settings changed, so that the place has no meaning any more, or if a tokenizer was
                given that is not the one of the checkpoint.
        """
        if self._is_fit and self.corpora["train"]:
            self.check_state(state)
            self.cursor, self._dropped = state["cursor"], DroppedRows(state.get("dropped"))
        self._choice.adopt(SubwordTokenizer.from_state(state["tokenizer"]))

    @property
    def _running(self) -> L.Trainer | None:
        """The Trainer while it is at work; None in a loop of one's own, perhaps before or after one."""
        is_running = self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING
        return self.trainer if is_running else None

    @property
    def _is_fit(self) -> bool:
        """Whether the training text is in use; without a Trainer that is up to the caller."""
        return self._running is None or self._running.state.fn == "fit"

    def _check_alone(self) -> None:
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise MisconfigurationException(
                "several processes share the training text only under a Trainer: call trainer.fit(model, datamodule)"
            )

    def _move(self, batch: TranslationBatch) -> None:
        """Where no Trainer tells what has been trained on, that is what was handed out."""
        self.cursor = batch.cursor or self.cursor

    def _pools(self, endless: bool) -> PoolStream | CachedPools:
        corpora, batches = self._need("train"), self.build_batches(self.max_tokens, self.shuffle)
        settings = (batches, self.limits, self.pool_size, self.seed, endless)
        if self.cache_path is None:
            dropout = BPEDropout(self.tokenizer, self.bpe_dropout, self.seed) if self.bpe_dropout else None
            rows = (self.num_lanes, self.mixing, self.on_bad_row)
            return PoolStream(corpora, self.tokenizer, *settings, *rows, dropout)
        cache = self._cache(self.cache_path)
        shares = self.mixing.shares(corpora, cache.sizes) if self.mixing.repeats else None
        return CachedPools(cache, *settings, shares)

    def _cache(self, path: str) -> TokenCache:
        return write_or_open_cache(path, self._need("train"), self.tokenizer, self.on_bad_row)

    def _start(self) -> Cursor:
        overfit = getattr(self.trainer, "overfit_batches", 0)
        return start_of(0, self.num_lanes) if overfit else self.cursor  # overfitting repeats its first batches

    def _agree(self, numbers: list[int]) -> list[int]:
        """The largest numbers that any process brings."""
        strategy = cast(L.Trainer, self.trainer).strategy
        largest = strategy.reduce(torch.tensor(numbers, device=strategy.root_device), reduce_op="max")
        return [int(number) for number in largest.tolist()]

    def _of_all_lanes(self) -> tuple[Cursor, Counter[str]]:
        """The cursor and the dropped rows of all lanes, also of those that only other processes know."""
        world_size = 1 if self.trainer is None else self.trainer.world_size
        groups = gcd(self.num_lanes, world_size)
        if groups == 1:
            return self.cursor, self.dropped
        parts: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(parts, (self.cursor, self.dropped))
        restored = self._dropped.restored  # known to all; beyond it the first processes have all lanes once
        dropped = sum((counts - restored for _, counts in parts[:groups]), restored)
        return joined([cursor for cursor, _ in parts]), dropped

    def _need(self, part: str) -> list[ParallelCorpus]:
        if not self.corpora[part]:
            raise MisconfigurationException(f"no {part} corpus is given: set {part} of the data module")
        check_targets(self.corpora[part], part)
        check_tags(self.corpora[part], self.tokenizer.tags)
        return self.corpora[part]

    def _evaluation(self, part: str) -> EvaluationBatches:
        corpora = self._need(part)
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        if rank == 0:
            warn_of_untagged(corpora, self.corpora["train"], self.tokenizer.tags)
        return EvaluationBatches(
            corpora,
            self.tokenizer,
            self.build_batches(self.eval_max_tokens, True),
            self.limits.max_length,
            self.pool_size,
            rank,
            world_size,
            part != "predict",
        )

    def _count(self, pool: Pool) -> None:
        total = self._dropped.begin(pool, self.cursor)
        if pool.dropped:
            lane = f"lane {pool.lane}, " if self.num_lanes > 1 else ""
            message = "epoch %d, %spool %d: left out %s rows; so far %s"
            number = f"{pool.dropped.total():,}"
            logger.info(message, pool.epoch, lane, pool.place["pool"], number, in_words(total))

    def _check_numbers(self) -> None:
        for name in ("max_tokens", "eval_max_tokens", "pool_size", "num_lanes", "tokenizer_max_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        given, needed = len(self.mixing.weights or []), len(self.corpora["train"])
        if given and needed and given != needed:
            raise ValueError(f"weights has {given} numbers for {needed} training corpora: give one for each")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {self.num_workers}")
        if self.cache_path is not None and self.num_lanes > 1:
            raise ValueError(f"num_lanes={self.num_lanes} is for streams; with cache_path leave it out")
        if not 0 <= self.bpe_dropout <= 1:
            raise ValueError(f"bpe_dropout must lie between 0 and 1, got {self.bpe_dropout}")
        if self.cache_path is not None and self.bpe_dropout:
            raise ValueError("bpe_dropout cuts the text anew in each epoch, which a cache of ids cannot: leave one out")
        if self.limits.max_length > self.eval_max_tokens:
            raise ValueError(
                f"eval_max_tokens={self.eval_max_tokens} cannot hold a sentence of max_length={self.limits.max_length}"
            )

    def _load_tokenizer(self, may_make: bool) -> None:
        folder = "." if self.trainer is None else self.trainer.default_root_dir
        if may_make:
            self._choice.make(folder, self._training_pairs, self._text_fingerprint)
        else:
            self._choice.find(folder)

    def _training_pairs(self) -> Iterable[SentencePair]:
        rows = MixedRows(self.corpora["train"], self.pool_size, mixing=self.mixing, on_bad_row=self.on_bad_row)
        return islice(rows.pairs(), self.tokenizer_max_pairs)

    def _text_fingerprint(self) -> str:
        content = [corpus.fingerprint() for corpus in self.corpora["train"]] + [str(self.tokenizer_max_pairs)]
        content += [str(vars(self.mixing))] if self.mixing.repeats else []
        return hashlib.sha256(" ".join(content).encode()).hexdigest()[:16]

    def _stream_settings(self) -> dict[str, Any]:
        return {
            "train": [corpus.fingerprint() for corpus in self.corpora["train"]],
            "pool_size": self.pool_size,
            "num_lanes": self.num_lanes,
            "is_cached": self.cache_path is not None,
            "max_tokens": self.max_tokens,
            "max_length": self.limits.max_length,
            "max_length_ratio": self.limits.max_length_ratio,
            "weights": self.mixing.weights,
            "temperature": self.mixing.temperature if self.mixing.repeats else None,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "bpe_dropout": self.bpe_dropout,
        }

    def check_state(self, saved: dict[str, Any]) -> None:
        """Refuses to resume from the state of a checkpoint that does not belong to this text and tokenizer.

        Called before ``fit`` it spares a run the making of a tokenizer that it would not use.

        Raises:
            CorpusError: If data, settings or the recipe of the tokenizer changed.
        """
        self.check_stream(saved.get("stream", {}))
        if "tokenizer" in saved:
            self._choice.resume(SubwordTokenizer.from_state(saved["tokenizer"]))

    def check_stream(self, saved: dict[str, Any]) -> None:
        """Refuses to resume from a place in another stream, described by ``saved`` of the checkpoint.

        Raises:
            CorpusError: If data or settings changed, so that the place has no meaning any more.
        """
        check_stream(self._stream_settings(), saved)


def _listed(part: str, corpora: list[ParallelCorpus] | ParallelCorpus | None) -> list[ParallelCorpus]:
    if corpora is None:
        return []
    found = list(corpora) if isinstance(corpora, (list, tuple)) else [corpora]
    for one in found:
        if not isinstance(one, ParallelCorpus):
            raise TypeError(
                f"{part} must be a ParallelCorpus or a list of them, got {type(one).__name__}; "
                "text in memory becomes one by MemoryCorpus(rows)"
            )
    return found
