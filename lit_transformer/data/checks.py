"""Whether corpora fit what they are to be read for, said before hours are spent on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler

from lit_transformer.data.corpus import CorpusError, ParallelCorpus
from lit_transformer.interfaces import InputError

logger = logging.getLogger(__name__)


def check_targets(corpora: Sequence[ParallelCorpus], part: str) -> None:
    """Refuses corpora without translations where those are needed.

    Raises:
        CorpusError: If a corpus for another part than ``predict`` has no target side.
    """
    blind = next((corpus for corpus in corpora if corpus.tgt is None), None)
    if blind is not None and part != "predict":
        raise CorpusError(f"{blind} has no target side, which {part} needs: set its tgt")


def check_tags(corpora: Sequence[ParallelCorpus], known: Sequence[str]) -> None:
    """Refuses tags that the vocabulary does not have.

    Raises:
        CorpusError: If a corpus has such a tag.
    """
    for corpus in corpora:
        if corpus.src_tag is not None and corpus.src_tag not in known:
            raise CorpusError(
                f"{corpus} has src_tag={corpus.src_tag}, which is none of the tags of the vocabulary "
                f"({', '.join(known) or 'none'}): take one of them, or train a tokenizer that has it"
            )


def warn_of_untagged(corpora: Sequence[ParallelCorpus], train: Sequence[ParallelCorpus], known: Sequence[str]) -> None:
    """Warns of text without a tag for a model that has seen nothing without.

    Args:
        corpora: The text to evaluate on.
        train: The training text, as far as it is known; a corpus without a tag in it makes that a thing to be expected.
        known: The tags of the vocabulary.
    """
    if not known or any(corpus.src_tag is None for corpus in train):
        return
    for corpus in corpora:
        if corpus.src_tag is None:
            message = "%s has no src_tag, but the model was trained with tags (%s): set one, unless its lines have them"
            logger.warning(message, corpus, ", ".join(known))


def check_accumulation(callbacks: Sequence[Callback]) -> None:
    """Refuses to change the number of batches in a step within a run, since the stream is cut into whole steps before.

    Raises:
        InputError: If Lightning's scheduler is among the callbacks.
    """
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        raise InputError(
            "GradientAccumulationScheduler changes the number of batches in a step behind the back of the training "
            "stream: leave it out of trainer.callbacks, and set trainer.accumulate_grad_batches instead"
        )


def check_stream(now: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuses to go on in a stream that is not the one a checkpoint was written in.

    Args:
        now: What the stream depends on.
        saved: The same in the checkpoint.

    Raises:
        CorpusError: If they differ.
    """
    saved = {"is_cached": False, "bpe_dropout": 0.0, **saved}
    changed = [f"{name} was {saved.get(name)} and is {now[name]}" for name in now if saved.get(name) != now[name]]
    if saved.get("train") != now["train"]:
        changed[0] = "the training text is not the same"
    if changed:
        raise CorpusError(
            f"the checkpoint cannot be resumed because its place in the training stream is lost: "
            f"{'; '.join(changed)}; restore the old setting or start a new run"
        )
