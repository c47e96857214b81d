"""Answers jobs with a trained model; runs in the worker processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import accumulate
from pathlib import Path
from typing import Any

from lit_transformer.attention_page import attention_grids
from lit_transformer.attention_view import AttentionView
from lit_transformer.bidi import pointing
from lit_transformer.command_options import loading_a_model
from lit_transformer.decoding import BeamSearch
from lit_transformer.decoding.search import takes_prefixes
from lit_transformer.errors import NoAttentionError
from lit_transformer.exchange.engine import CTranslate2Translator, Engine, load_translator
from lit_transformer.interfaces import Translation
from lit_transformer.lines import check_tag, lacks_tag
from lit_transformer.model_files import weights_of
from lit_transformer.nn.products import Precision
from lit_transformer.serving.requests import Job, Limits, Reply, RequestError, error_reply, json_reply
from lit_transformer.serving.timed import TimedSearch, TimeUpError
from lit_transformer.translator import Translator
from lit_transformer.vocabulary import UNK_ID

logger = logging.getLogger(__name__)
_FAILED = RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, "this text could not be translated; the server's log says why")
_TRIAL = "I love cats"


@dataclass(frozen=True)
class ModelSettings:
    """What a worker process needs to know to load the model.

    Args:
        checkpoint: Path of a checkpoint, run folder or exported folder.
        run: Where to look for another checkpoint if that one is gone, as when a training goes on; None is nowhere.
        search: How to decode; only a ``TimedSearch``, for the engine ``torch``, can be given up half-way. Jobs choose
            its ``n_best``, may ask for less than its ``max_extra_length``, and for any ``no_repeat_ngram_size`` and
            ``allow_unknown``: what it has there is for those that do not say.
        max_length: Longest text in tokens.
        precision: Of weights and arithmetic.
        device: Where to translate.
        num_threads: Threads of one worker on the CPU.
        engine: ``torch`` or ``ctranslate2``.
        src_tag: Tag of texts that have none and whose request names none; empty if they need none, None if they are to
            be refused by a model that was trained with tags.
    """

    checkpoint: str
    search: BeamSearch = field(default_factory=BeamSearch)
    max_length: int = 512
    precision: Precision = "float32"
    device: str = "cpu"
    num_threads: int = 1
    engine: Engine = "torch"
    run: str | None = None
    src_tag: str | None = None


class ServedModel:
    """A translator behind the server: turns jobs into replies, each on its own even where they share a batch.

    Args:
        translator: The trained model; another engine serves as well if it has ``translate``, ``attention``,
            ``search``, ``max_length`` and a ``tokenizer`` with ``encode_src``, ``is_blank`` and ``tags``.
        limits: What a job may ask for.
        src_tag: See ``ModelSettings``.

    Raises:
        InputError: If the model does not know the tag.
    """

    def __init__(self, translator: Translator, limits: Limits, src_tag: str | None = None) -> None:
        if src_tag:
            check_tag(src_tag, translator.tokenizer.tags, "src_tag")
        self.translator = translator
        self.limits = limits
        self.src_tag = src_tag
        self._usual = dict(vars(translator.search))

    @classmethod
    def load(cls, settings: ModelSettings, limits: Limits) -> ServedModel:
        """Loads the model.

        Raises:
            InputError: If there is nothing there to translate with, too little memory, no such engine or no such tag.
        """
        checkpoint = settings.checkpoint
        if settings.run is not None and not Path(checkpoint).exists():
            checkpoint = str(weights_of(settings.run))
            logger.warning(
                "%s is gone: this worker serves %s, others may serve other weights", settings.checkpoint, checkpoint
            )
        with loading_a_model():
            translator = load_translator(
                checkpoint,
                settings.engine,
                search=copy(settings.search),  # each job changes it
                max_length=settings.max_length,
                precision=settings.precision,
                num_workers=1,
            ).to(settings.device)
        translator.names_lines = False  # which would be places in a batch of several clients
        return cls(translator, limits, settings.src_tag)

    def describe(self) -> dict[str, Any]:
        """What clients may know about the model."""
        network = getattr(self.translator, "network", None)  # other engines keep their weights to themselves
        return {
            "network": type(network or self.translator).__name__,
            "parameters": sum(parameter.numel() for parameter in network.parameters()) if network else None,
            "precision": self.translator.precision,
            "src_tags": list(self.translator.tokenizer.tags),
            "src_tag": self.src_tag,
            "attention": hasattr(network, "attention_maps"),
            "max_length": self.translator.max_length,
        }

    def try_out(self) -> None:
        """Translates a sentence: what cannot work fails now, not with the first client, who gets a warm model.

        Raises:
            InputError: If the engine cannot translate as it was asked to, or there is too little memory.
        """
        with loading_a_model():
            list(self.translator.translate([_TRIAL]))

    def answer(self, jobs: Sequence[Job], is_forgotten: Callable[[], bool] = bool) -> list[Reply]:
        """A reply for each job; those that ask for the same search are searched for together.

        Args:
            jobs: The requests.
            is_forgotten: Asked before each step of a search and each look inside; once it is true, nobody waits for any
                of the replies.
        """
        if isinstance(self.translator.search, TimedSearch):
            self.translator.search.is_forgotten = is_forgotten
        replies: dict[int, Reply] = {}
        alike: dict[tuple[Any, ...], list[int]] = {}
        for place, job in enumerate(jobs):
            if not _looks_inside(job):
                alike.setdefault(tuple(self._settings_for(job).values()), []).append(place)
        for group in alike.values():
            vars(self.translator.search).update(self._settings_for(jobs[group[0]]))
            places = [place for place in group if self._accepts(place, jobs[place], replies)]
            if places:
                replies.update(zip(places, self._translate([jobs[place] for place in places]), strict=True))
        for place, job in enumerate(jobs):
            if _looks_inside(job) and self._accepts(place, job, replies):
                replies[place] = error_reply(_late()) if is_forgotten() else _guarded(self._look, job)
        return [replies[place] for place in range(len(jobs))]

    def _accepts(self, place: int, job: Job, replies: dict[int, Reply]) -> bool:
        """Whether a job fits the model; if not, its reply says why."""
        try:
            self._check(job)
        except RequestError as refusal:
            replies[place] = error_reply(refusal)
        return place not in replies

    def _check(self, job: Job) -> None:
        if time.monotonic() > job.deadline:
            raise _late()
        tags = self.translator.tokenizer.tags
        if job.src_tag and job.src_tag not in tags:
            known = f"its tags are {', '.join(tags)}" if tags else "it was trained without tags, so leave src_tag out"
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f'the model does not know this "src_tag"; {known}')
        if tags and job.src_tag is None and self.src_tag is None:
            bare = [number for number, text in enumerate(job.texts, 1) if lacks_tag(text, tags)]
            if bare:
                sentence = f"text {bare[0]} has no tag, but the model was trained with tags ({', '.join(tags)})"
                remedy = 'set "src_tag" to one of them, or to "" if it needs none'
                raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{sentence}: {remedy}")
        if _looks_inside(job) and self.translator.tokenizer.is_blank(job.texts[0]):
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "the text is empty; give a sentence to look at")
        longest = self.translator.max_length
        longest = min(longest, self.limits.max_attention) if _looks_inside(job) else longest
        lengths = [len(ids) for ids in self.translator.tokenizer.encode_src(self._sources(job))]
        for number, length in enumerate(lengths, 1):
            if length > longest:
                what = " to show its attention" if _looks_inside(job) else ""
                sentence = f"text {number} has {length} tokens; at most {longest} are taken{what}, so cut it"
                raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)
        if job.target is not None:
            length = len(self.translator.tokenizer.encode_tgt([job.target])[0]) - 1  # EOS is written, never read
            if length > longest:
                sentence = f"the target has {length} tokens; at most {longest} are taken to show its attention"
                raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{sentence}, so cut it")
        if any(job.prefixes):
            self._check_prefixes(job, lengths)

    def _check_prefixes(self, job: Job, lengths: Sequence[int]) -> None:
        """Refuses prefixes that leave no room in the translations of texts of so many tokens."""
        if isinstance(self.translator, CTranslate2Translator) or not takes_prefixes(self.translator.search):
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "this server begins no translation with a prefix")
        rows = self.translator.tokenizer.encode_tgt([prefix.strip() for prefix in job.prefixes])
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True), 1):
            if UNK_ID in row:
                sentence = f"prefix {number} holds what the model has no token for; write it in other words or signs"
                raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)
            given, room = len(row) - 2, self.translator.longest_output(length) - 1  # BOS and EOS are not in it
            if given > room:
                sentence = f"prefix {number} has {given} tokens, and the translation may have {room}; shorten it"
                raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)

    def _translate(self, jobs: Sequence[Job]) -> list[Reply]:
        """Replies for jobs with one search, which is set; if their batch fails, each is tried alone."""
        self._set_deadline(jobs)
        begun = [prefix for job in jobs for prefix in job.prefixes or [""] * len(job.texts)]
        try:
            sources = [source for job in jobs for source in self._sources(job)]
            found = self.translator.translate(sources, begun if any(begun) else None)
            return [json_reply({"results": [_result(text, next(found)) for text in job.texts]}) for job in jobs]
        except TimeUpError:
            return [error_reply(_late()) for _ in jobs]
        except Exception:  # whatever it is, the other clients of the batch should not suffer from it
            if len(jobs) > 1:
                return [reply for job in jobs for reply in self._translate([job])]
            logger.exception("a request failed")
            return [error_reply(_FAILED)]

    def _look(self, job: Job) -> Reply:
        """The attention of one text, as JSON or as a page."""
        vars(self.translator.search).update(self._settings_for(job))
        self._set_deadline([job])
        view = self.translator.attention(self._sources(job)[0], job.target)
        if not job.as_page:
            result = _result(job.texts[0], view.beams)
            return json_reply({"results": [{**result, "attention": _attention(view)}]})
        tokens = accumulate(len(tgt_tokens) for _, tgt_tokens in [(view.maps, view.tgt_tokens), *view.others])
        num_others = sum(sum_of_tokens <= self.limits.max_candidates for sum_of_tokens in tokens) - 1
        page = replace(view, others=view.others[: max(0, num_others)]).page(pointing(job.texts[0], view.target))
        return Reply(200, "text/html; charset=utf-8", page.encode())

    def _sources(self, job: Job) -> list[str]:
        """The texts as the model reads them."""
        tag = self.src_tag if job.src_tag is None else job.src_tag
        if not tag:
            return list(job.texts)
        enough = self.translator.tokenizer.tags if job.src_tag is None else [tag]
        return [f"{tag} {text}" if lacks_tag(text, enough) else text for text in job.texts]

    def _settings_for(self, job: Job) -> dict[str, Any]:
        """The settings of the search that jobs may choose: what this one says, else as they are on this server."""
        said = {
            "n_best": job.n_best,
            "max_extra_length": job.max_extra_length,
            "no_repeat_ngram_size": job.no_repeat_ngram_size,
            "allow_unknown": None if job.no_unknown is None else not job.no_unknown,
        }
        usual = {name: self._usual[name] for name in said if name in self._usual}
        return {name: value if said[name] is None else said[name] for name, value in usual.items()}

    def _set_deadline(self, jobs: Sequence[Job]) -> None:
        """Lets the search go on until none of the jobs is waited for."""
        if isinstance(self.translator.search, TimedSearch):
            self.translator.search.deadline = max(job.deadline for job in jobs)


def _looks_inside(job: Job) -> bool:
    return job.attention or job.as_page


def _result(text: str, found: list[Translation]) -> dict[str, Any]:
    return {"source": text, "translations": [{"text": one.text, "score": round(one.score, 4)} for one in found]}


def _attention(view: AttentionView) -> dict[str, Any]:
    """Weights ``[layer][head][query][key]`` of the three attentions, with the tokens they belong to."""
    grids = attention_grids(view.maps, view.src_tokens, view.tgt_tokens)
    weights = {
        kind: [[[[round(x, 4) for x in row] for row in head] for head in layer.tolist()] for layer in grid.layers]
        for kind, grid in grids.items()
    }
    return {"src_tokens": view.src_tokens, "tgt_tokens": view.tgt_tokens, **weights}


def _late() -> RequestError:
    """A fresh one each time: an exception that is raised again keeps the frames of all times alive."""
    sentence = "there was no answer in time; try again later"
    return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, sentence, {"Retry-After": "1"})


def _guarded(look: Callable[[Job], Reply], job: Job) -> Reply:
    try:
        return look(job)
    except TimeUpError:
        return error_reply(_late())
    except NoAttentionError as error:
        logger.info("no attention was shown: %s", error)  # names files of this machine
        return error_reply(RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "this model cannot show its attention"))
    except Exception:  # the reason is for the log, not for the client
        logger.exception("a request failed")
        return error_reply(_FAILED)
