"""Translator: text in, text out, from a checkpoint or a folder; no Lightning needed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_transformer.alignment import AttentionAligner, Link
from lit_transformer.attention_view import AttentionView, attention_of
from lit_transformer.checkpoints import CheckpointError
from lit_transformer.data.batching import batches_by_length, padded, shortened
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.decoding import BeamSearch
from lit_transformer.decoding.search import require_prefixes
from lit_transformer.decoding.workers import Prefixes, SearchWorkers, possible_workers
from lit_transformer.errors import NoTranslationError
from lit_transformer.interfaces import Hypothesis, InputError, Search, Translation, TranslationNetwork
from lit_transformer.kernels import has_fast_bfloat16
from lit_transformer.model_files import read_model, write_model
from lit_transformer.nn.evaluation import evaluating
from lit_transformer.nn.preparing import Prepared, obstacle_to, prepared
from lit_transformer.nn.products import Precision, check_precision
from lit_transformer.pair_scores import PairScore, PairScorer
from lit_transformer.vocabulary import BOS_ID, EOS_ID, UNK_ID

logger = logging.getLogger(__name__)

_USUAL_EXTRA_LENGTH = 50  # of a search that does not say how long translations may get
_WINDOW = 2048  # lines sorted by length together; bounds the memory of a stream
_MAX_SCORES = 2**26  # of all words after all hypotheses of a batch: 256 MiB in float32
_MANY = 256  # lines from which on starting worker processes pays


class Translator:
    """Translates text with a trained network and its tokenizer.

    Args:
        network: The trained network; it is put into evaluation mode, so call its ``train()`` to train on.
        tokenizer: The tokenizer that it was trained with.
        search: How to decode; the default is the paper's beam search.
        max_tokens: Budget of a batch, in source tokens with padding.
        max_length: Longer source sentences are cut to this many tokens, EOS included, with a warning. A network with
            a ``max_length`` of its own may lower it.
        precision: Of weights and arithmetic: ``float32``, ``bf16`` (on CPUs half the memory traffic; elsewhere
            automatic mixed precision) or ``int8`` (a quarter, CPUs only). The lower ones change a few words.
        num_workers: Processes that search side by side in ``translate``, on Linux and the CPU; 1 searches in this
            process, None starts one for each core, up to 16, if there are many lines.
        compile: Whether to compile decoding steps with the machine's C compiler: on CPUs and in ``float32`` or
            ``int8``, several times as fast for single sentences. Each process then searches on one core.

    Attributes:
        names_lines: Whether ``translate`` warns, by their numbers, of lines whose translation is as long as the search
            allows, so that it may lack its end.

    Raises:
        ValueError: If ``max_tokens``, ``max_length`` or ``num_workers`` is below 1, or there is no such precision.
        CheckpointError: If the tokenizer has ids that the network does not know.
    """

    names_lines = True

    def __init__(
        self,
        network: TranslationNetwork,
        tokenizer: SubwordTokenizer,
        search: Search | None = None,
        max_tokens: int = 4096,
        max_length: int = 512,
        precision: Precision = "float32",
        num_workers: int | None = None,
        compile: bool = False,
    ) -> None:
        check_precision(precision)
        self._has_warned = False  # of slow bfloat16
        for name, value in {"max_tokens": max_tokens, "max_length": max_length}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1 token, got {value}")
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}")
        _check_sizes(network, tokenizer)
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.search = search or BeamSearch()
        self.max_tokens = max_tokens
        self.precision: Precision = precision
        self.num_workers = num_workers
        self.compile = compile
        self._prepared: Prepared | None = None
        self.max_length = min(max_length, network.max_length or max_length)
        self._longest = network.max_length

    @classmethod
    def from_pretrained(cls, path: str | Path, *, revision: str | None = None, **options: Any) -> Translator:
        """Loads a checkpoint, the newest checkpoint of a run folder, a folder written by ``save``, or one of the Hub.

        Args:
            path: A ``.ckpt`` file or a folder; if there is none of this name and no folder ``owner``, ``owner/name`` on
                the Hub.
            revision: Branch, tag or commit on the Hub; None is the main branch.
            options: Arguments of the constructor: ``search``, ``max_tokens``, ``max_length``, ``precision``,
                ``num_workers``, ``compile``.

        The network is nobody else's, so its weights ask for no gradients.

        Raises:
            CheckpointError: If there is nothing there to translate with.
        """
        network, tokenizer = read_model(path, revision)
        return cls(network.requires_grad_(False), tokenizer, **options)

    def save(self, folder: str | Path) -> Path:
        """Writes weights (safetensors), configuration (JSON) and tokenizer (JSON) into a folder.

        Raises:
            ValueError: If the network was built with arguments that JSON cannot hold.
        """
        return write_model(self.network, self.tokenizer, folder)

    def notice_new_weights(self) -> None:
        """Must be called by whoever changes weights of the network in place (``.data``) between two translations.

        A network that is in training when it is asked to translate is looked at anew each time.
        """
        self._prepared = None

    def to(self, device: torch.device | str) -> Translator:
        """Moves the network to a device."""
        self.network.to(device)
        return self

    def __call__(self, texts: str | list[str]) -> list[str]:
        """The best translation of each sentence (of one sentence: a list of one)."""
        lines = [texts] if isinstance(texts, str) else texts
        return [best[0].text for best in self.translate(lines)]

    @torch.inference_mode()
    def attention(self, source: str, target: str | None = None) -> AttentionView:
        """What every head looks at while it reads ``source`` and writes ``target``.

        A notebook shows the result as a page to explore, and ``save("cats.html")`` writes that page.

        Args:
            source: The sentence.
            target: Its translation; None for the network's own, with all that the search returns beside the best.

        Raises:
            InputError: If there is no source text, the target is longer than the network can read, or the network has
                no ``attention_maps``.
        """
        if self.tokenizer.is_blank(source):
            raise InputError("the source sentence is empty; give a sentence to look at")
        src = self._encode([source], [0], 0)
        if target is not None:
            tgt = self.tokenizer.encode_tgt([target])
            longest = getattr(self.network, "max_length", None)
            if longest is not None and len(tgt[0]) - 1 > longest:
                raise InputError(f"the target has {len(tgt[0]) - 1} tokens, and the network reads at most {longest}")
            return attention_of(self.network, self.tokenizer, src[0], tgt, source, [target])
        with _naming(["the sentence"]):
            found = self._decode(padded(src))[0]
        beams = [Translation(self._line(one), one.score) for one in found]
        tgt = [[BOS_ID, *one.tokens, EOS_ID] for one in found]
        return attention_of(self.network, self.tokenizer, src[0], tgt, source, [one.text for one in beams], beams)

    def translate(
        self, texts: Iterable[str], prefixes: Iterable[str] | None = None, buffer_size: int | None = None
    ) -> Iterator[list[Translation]]:
        """Yields the n best translations of each sentence, in order and in constant memory.

        An empty sentence has one translation, the empty one, with score 0; so has one of nothing but tags. White space
        is read as it stands, doubled or at an end, just as in training; models of sentencepiece have a rule that drops
        it, in training and here.

        A prefix is cut into subwords like a whole target. If it ends within a word, the network may go on with that
        word or begin another, and its subwords need not be those with which it would write the word: better end a
        prefix with a whole word. White space around it does not count.

        Args:
            texts: The sentences.
            prefixes: For each sentence what its translations must begin with, an empty string where they are free.
            buffer_size: Sentences that are read before they are translated, together where they are alike in length;
                1 answers each before the next is asked for. None takes 2048, and reads on while workers translate.

        Raises:
            InputError: If it is one sentence instead of a list of them; if the search takes no prefixes, there are not
                as many as sentences, or one is longer than the translation may be.
        """
        if isinstance(texts, str) or isinstance(prefixes, str):
            raise InputError("translate takes a list of sentences; for a single one call the translator itself")
        if prefixes is not None:
            require_prefixes(self.search)
        return self._translated(texts, prefixes, buffer_size)

    def _translated(
        self, texts: Iterable[str], prefixes: Iterable[str] | None, buffer_size: int | None
    ) -> Iterator[list[Translation]]:
        windows, start, workers = _windows(texts, buffer_size or _WINDOW), 0, None
        beginnings = None if prefixes is None else iter(prefixes)
        waiting: deque[Iterator[list[Translation]]] = deque()
        try:
            while True:
                try:
                    window = next(windows, [])
                    if not window:
                        break
                    if start == 0 and (num_workers := self._suitable_workers(window)) > 1:
                        workers = SearchWorkers(self._search, self._fastest(), num_workers)
                    run = workers.submit if workers else self._later
                    begun = None if beginnings is None else list(islice(beginnings, len(window)))
                    waiting.append(self._translate_window(window, start, run, begun))
                except InputError:  # of this window: those before it are not to be lost
                    while waiting:
                        yield from waiting.popleft()
                    raise
                start += len(window)
                if len(waiting) > 1 or workers is None or buffer_size:  # workers begin with one before the last is done
                    yield from waiting.popleft()
            while waiting:
                yield from waiting.popleft()
            if beginnings is not None and next(beginnings, None) is not None:
                raise InputError(f"there are more prefixes than sentences, which are {start}; give one for each")
        finally:
            if workers is not None:
                workers.close()

    def align(self, pairs: Iterable[tuple[str, str]], layer: int | None = None) -> Iterator[list[Link]]:
        """Yields which word of the source each word of the target comes from, in order and in constant memory.

        The links are read off the encoder-decoder attention, see ``AttentionAligner``. ``pharaoh`` writes them as text.

        Args:
            pairs: Source sentences and their translations, the network's own or any others.
            layer: Decoder layer, counted from 1; None for the penultimate, or the only one.

        Returns:
            For each pair its links ``(source word, target word)``, words counted from 0 between white space.

        Raises:
            InputError: If the network has no ``cross_attention``, or no such layer.
        """
        longest = self.longest_output(self.max_length, more=1)  # BOS
        return AttentionAligner(self.network, self.tokenizer, layer, self.max_length, self.max_tokens, longest)(pairs)

    def score(self, pairs: Iterable[tuple[str, str]]) -> Iterator[PairScore]:
        """Yields how likely the network finds each translation, in order and in constant memory, see ``PairScorer``.

        Sources are cut to ``max_length`` tokens, and targets to as many as the search may write for these.

        Args:
            pairs: Source sentences and their translations.
        """
        longest = self.longest_output(self.max_length)
        return PairScorer(self.network, self.tokenizer, self.max_length, self.max_tokens, longest)(pairs)

    def longest_output(self, length: int, more: int = 0) -> int:
        """The most tokens, EOS and ``more`` included, that a source of ``length`` tokens may become here.

        See :func:`~lit_transformer.decoding.search.output_caps`; of a search without such a bound it is the usual one.
        """
        written = length + getattr(self.search, "max_extra_length", _USUAL_EXTRA_LENGTH)
        return min(written, self._longest or written) + more

    def _suitable_workers(self, window: list[str]) -> int:
        """How many processes these lines are worth."""
        if self.num_workers is not None:
            if self.num_workers > 1 and self._device.type != "cpu":
                raise InputError(f"{self.num_workers} workers search on the CPU, not on {self._device}")
            return self.num_workers
        return possible_workers() if len(window) >= _MANY and self._device.type == "cpu" else 1

    def _translate_window(
        self,
        texts: list[str],
        start: int,
        run: Callable[[Tensor, Prefixes], Callable[[], list[list[Hypothesis]]]],
        prefixes: list[str] | None,
    ) -> Iterator[list[Translation]]:
        """Queues some lines, batched by like length; ``start`` is the number of lines before them."""
        filled = [index for index, text in enumerate(texts) if not self.tokenizer.is_blank(text)]
        ids = dict(zip(filled, self._encode([texts[index] for index in filled], filled, start), strict=True))
        lengths = {index: len(row) for index, row in ids.items()}
        batches = batches_by_length(lengths, self.max_tokens, self._max_rows)
        begun = None if prefixes is None else self._encode_prefixes(prefixes, lengths, start, len(texts))
        jobs = [
            (indices, run(padded([ids[index] for index in indices]), begun and [begun[index] for index in indices]))
            for indices in batches
        ]

        def results() -> Iterator[list[Translation]]:
            lines = [[Translation("", 0.0)] for _ in texts]
            at_cap: dict[int, int] = {}  # by the number of the line
            for indices, wait in jobs:
                with _naming([f"line {start + index + 1}" for index in indices]):
                    hypotheses = wait()
                for index, found in zip(indices, hypotheses, strict=True):
                    lines[index] = [Translation(self._line(best), best.score) for best in found]
                    cap = self.longest_output(lengths[index])
                    if self.names_lines and self._is_bounded and any(len(one.tokens) + 1 == cap for one in found):
                        at_cap[start + index + 1] = cap
            for number, cap in sorted(at_cap.items()):
                logger.warning("line %d: the translation was closed at %d tokens, the longest allowed", number, cap)
            yield from lines

        return results()

    def _encode(self, texts: list[str], indices: list[int], start: int) -> list[list[int]]:
        rows = self.tokenizer.encode_src(texts)
        for number, row in zip(indices, rows, strict=True):
            if len(row) > self.max_length:
                logger.warning("line %d has %d tokens and is cut to %d", start + number + 1, len(row), self.max_length)
        return [shortened(row, self.max_length) for row in rows]

    def _encode_prefixes(self, prefixes: list[str], lengths: dict[int, int], start: int, count: int) -> list[list[int]]:
        """The target tokens that the translations of ``count`` lines must begin with, if they fit."""
        if len(prefixes) < count:
            raise InputError(f"line {start + len(prefixes) + 1} has no prefix; give one for each line, or an empty one")
        rows = [row[1:-1] for row in self.tokenizer.encode_tgt([prefix.strip() for prefix in prefixes])]
        for index, length in lengths.items():
            if UNK_ID in rows[index]:
                raise InputError(
                    f"line {start + index + 1}: the prefix {prefixes[index]!r} holds what the model has no token for; "
                    "write it in other words or signs"
                )
            cap = self.longest_output(length)
            if self._is_bounded and cap <= len(rows[index]):
                raise InputError(
                    f"line {start + index + 1}: the prefix has {len(rows[index])} tokens, and the translation may have "
                    f"{cap - 1}; shorten the prefix, or allow a longer translation"
                )
        return rows

    @property
    def _is_bounded(self) -> bool:
        """Whether the search says how long a translation may be."""
        return hasattr(self.search, "max_extra_length")

    @property
    def _max_rows(self) -> int:
        """How many sentences are searched together: short ones by the hundred would take gigabytes of scores."""
        return max(1, _MAX_SCORES // (self.tokenizer.num_tokens * getattr(self.search, "beam_size", 1)))

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _later(self, src: Tensor, prefixes: Prefixes = None) -> Callable[[], list[list[Hypothesis]]]:
        """The search for source ids ``(B, S)`` in this process, once it is called."""
        return lambda: self._decode(src, prefixes)

    @torch.inference_mode()
    def _decode(self, src: Tensor, prefixes: Prefixes = None) -> list[list[Hypothesis]]:
        return self._search(self._fastest(), src.to(self._device), prefixes)

    def _search(self, network: TranslationNetwork, src: Tensor, prefixes: Prefixes = None) -> list[list[Hypothesis]]:
        """The search, here or in a worker; a network that is not prepared for bfloat16 computes in it all the same."""
        is_bf16 = self.precision == "bf16" and network is self.network
        with evaluating(network), torch.autocast(src.device.type, torch.bfloat16, enabled=is_bf16):
            return self.search(network, src, **({} if prefixes is None else {"prefixes": prefixes}))

    def _fastest(self) -> TranslationNetwork:
        """The network prepared or compiled for searches, or itself where it can be neither."""
        if self.precision == "bf16" and self._device.type == "cpu" and not (self._has_warned or has_fast_bfloat16()):
            self._has_warned = True
            logger.warning("torch has no fast bfloat16 on this CPU: float32 is many times as fast")
        if self.network.training:  # its weights change, perhaps in ways that leave no trace
            self._prepared = None
        if self._prepared is not None and self._prepared.is_current():
            return self._prepared
        with evaluating(self.network):
            return self._prepare()

    def _prepare(self) -> TranslationNetwork:
        network, precision = self.network, self.precision
        reason = obstacle_to(network, precision, self.compile)
        if reason is None:
            self._prepared = prepared(network, precision, self.compile)
            return self._prepared
        if self.compile:
            raise InputError(f"the network cannot be compiled: {reason}; translate without compile")
        if precision == "int8":
            raise InputError(f"precision int8 is not possible for this network: {reason}; use bf16 or float32")
        return network

    def _line(self, hypothesis: Hypothesis) -> str:
        """A hypothesis as text on one line."""
        return one_line(self.tokenizer.decode(hypothesis.tokens))


@contextmanager
def _naming(names: list[str]) -> Iterator[None]:
    """Says which sentence has no translation, where a search knows rows of its batch alone."""
    try:
        yield
    except NoTranslationError as error:
        raise NoTranslationError(error.row, names[error.row]) from None


def _windows(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of ``size`` lines; if one cannot be read, those before it come first."""
    window: list[str] = []
    try:
        for text in texts:
            window.append(text)
            if len(window) == size:
                yield window
                window = []
    except InputError:
        if window:
            yield window
        raise
    if window:
        yield window


def one_line(text: str) -> str:
    """The text without line breaks, so that it takes one line of a file."""
    return text.replace("\r", " ").replace("\n", " ")


def _check_sizes(network: TranslationNetwork, tokenizer: SubwordTokenizer) -> None:
    """Refuses a tokenizer with ids that the network has no room for."""
    src_room = getattr(network, "src_vocab_size", network.vocab_size)
    sides = {"source": (tokenizer.num_src_tokens, src_room), "target": (tokenizer.num_tokens, network.vocab_size)}
    for side, (tokens, room) in sides.items():
        if tokens > room:
            raise CheckpointError(
                f"the tokenizer has {tokens} {side} tokens but the network only {room}: they were not trained together"
            )
