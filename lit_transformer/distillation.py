"""Knowledge distillation: a model learns from the references and from what other models say of each token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_transformer.errors import InputError
from lit_transformer.interfaces import TranslationBatch, TranslationNetwork
from lit_transformer.loss import Shortlist, SmoothedLoss, Teacher, mean_distribution, smoothed_cross_entropy
from lit_transformer.model_files import read_model
from lit_transformer.module import LitTransformer
from lit_transformer.network_checks import too_short
from lit_transformer.nn.outputs import ends_in_a_product, output_features, output_matrix
from lit_transformer.rdrop import RDropTransformer
from lit_transformer.teacher_memory import TeacherMemory
from lit_transformer.vocabulary import PAD_ID

_MAX_PROBS = 2**24  # looked at together: 64 MiB in float32


class _Teachers(list[TranslationNetwork]):
    """No part of the module: neither its weights nor, in what is copied or pickled from it, there at all."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Teachers:
        return _Teachers()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Teachers, ()


class DistilledTransformer(RDropTransformer):
    r"""Trains with knowledge distillation: the student learns how likely its teachers find each word.

    The loss is :math:`(1 - w)` times that of ``LitTransformer`` plus :math:`w` times the cross-entropy against the mean
    distribution of all teachers, both means per target token. Several teachers of one kind, trained from other seeds,
    translate better together than each alone, and the student takes most of that over at the size of one. A teacher may
    be larger, too; it has to have the same tokens. ``train/perplexity`` is that of the references, as ever.

    With ``alpha`` the student trains with R-Drop too, see ``RDropTransformer``: it passes twice, the teachers once.

    Teachers read each batch without dropout, on the device of the student, and are no part of its checkpoints: only
    ``fit`` needs them. With ``teacher_top_k`` they read each sentence pair once, in the first pass over the text: the
    likeliest tokens are remembered, and what is left of the probability counts as spread over all. That is for small
    corpora: each process remembers the pairs that it has met, 6 bytes for each of the likeliest at each target token. A
    run that goes on from a checkpoint asks anew, and may differ from one that never stopped in the last digits.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network"; for words Kim and Rush 2016,
    "Sequence-level knowledge distillation", section 3.1; for the mean of several teachers Freitag et al. 2017,
    "Ensemble distillation for neural machine translation".

    Args:
        *args: Arguments of ``LitTransformer``, the network first.
        teachers: Trained models, as ``translate`` takes them: ``.ckpt`` files, folders of runs (their newest
            checkpoint) or of ``average`` and ``export``, or names on the Hub.
        teacher_weight: The share :math:`w` of the loss, from 0 to 1.
        teacher_top_k: How many of the likeliest tokens are remembered at each target token, such as 32; None asks the
            teachers in each step, and learns from all tokens.
        alpha: Weight of R-Drop's divergence; 0 does without, and each sentence passes once.
        **kwargs: Arguments of ``RDropTransformer``.

    Raises:
        ValueError: If ``teacher_weight`` is not in [0, 1], or ``teacher_top_k`` is below 1.
        InputError: At the start of ``fit``: if there is no teacher, or one has other tokens than the data; with
            ``teacher_top_k``, if the data module cuts words anew in each pass (``bpe_dropout``).
        CheckpointError: At the start of ``fit``: if a teacher cannot be read.
    """

    def __init__(
        self,
        *args: Any,
        teachers: list[str] | None = None,
        teacher_weight: float = 0.5,
        teacher_top_k: int | None = None,
        alpha: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, alpha=alpha, **kwargs)
        if not 0 <= teacher_weight <= 1:
            raise ValueError(f"teacher_weight must be from 0 to 1, got {teacher_weight}")
        if teacher_top_k is not None and teacher_top_k < 1:
            raise ValueError(f"teacher_top_k must be 1 or more, or None, got {teacher_top_k}")
        self.teacher_top_k = teacher_top_k
        self.teachers, self.teacher_weight = teachers or [], teacher_weight
        self._networks = _Teachers()
        self._tokens: list[str] = []  # fingerprints of their tokenizers
        self._memory: TeacherMemory | None = None
        self._said: list[Teacher] | Shortlist = []  # of the batch in hand

    def read_teachers(self) -> None:
        """Reads the teachers; ``fit`` does so by itself, and the command before it touches an earlier run.

        Raises:
            InputError: If there is none, or one has a vocabulary of another size than the network.
            CheckpointError: If one cannot be read.
        """
        if not self.teachers:
            raise InputError(f"{type(self).__name__} has no teachers: name trained models in model.teachers")
        self._networks, self._tokens = _Teachers(), []
        for path in self.teachers:
            network, tokenizer = read_model(path)
            if network.vocab_size != self.network.vocab_size:
                raise InputError(
                    f"the teacher {path} has other tokens than the data: its vocab_size is {network.vocab_size}, that "
                    f"of the network {self.network.vocab_size}; make them agree"
                )
            self._networks.append(network.requires_grad_(False).eval())
            self._tokens.append(tokenizer.fingerprint)

    def check_memory(self, datamodule: object) -> None:
        """Refuses to remember pairs that a data module never gives again.

        Raises:
            InputError: If it does not.
        """
        if self.teacher_top_k is not None and getattr(datamodule, "bpe_dropout", False):
            raise InputError(
                "model.teacher_top_k remembers sentence pairs, and data.bpe_dropout cuts them anew in each pass: leave "
                "one of the two out"
            )

    def on_fit_start(self) -> None:
        """Reads the teachers, and refuses those of other tokens, or that cannot read the longest sentences."""
        super().on_fit_start()
        if not self._networks:
            self.read_teachers()
        data = getattr(self.trainer, "datamodule", None)
        self.check_memory(data)
        expected = getattr(getattr(data, "tokenizer", None), "fingerprint", None)
        for path, network, tokens in zip(self.teachers, self._networks, self._tokens, strict=True):
            if expected is not None and tokens != expected:
                raise InputError(
                    f"the teacher {path} has other tokens than the data: train both with one tokenizer, by "
                    "data.tokenizer_path, which names the tokenizer.json of the teacher's run"
                )
            if lengths := too_short(network, data):
                raise InputError(
                    f"the teacher {path} reads {lengths[0]} tokens at most, and data.max_length is {lengths[1]}: "
                    "lower data.max_length"
                )

    def on_train_start(self) -> None:
        """Takes the teachers to the device of the student, which is known by now."""
        super().on_train_start()
        if self.teacher_top_k is not None:
            self._memory = TeacherMemory(self.teacher_top_k, self._ask_for_few)
        for network in self._networks:
            network.to(self.device)

    def on_fit_end(self) -> None:
        """Lets the teachers go."""
        super().on_fit_end()
        self._networks, self._memory = _Teachers(), None

    def compute_loss(self, batch: TranslationBatch) -> SmoothedLoss:
        """In training the loss with the teachers' word; otherwise that of ``LitTransformer``."""
        self._said = (self._memory or self._ask)(batch) if self.training else []
        try:
            return super().compute_loss(batch)
        finally:
            self._said = []

    def loss_of_features(self, features: Tensor, labels: Tensor) -> SmoothedLoss:
        """The loss from what the decoder says of each token ``(N, D)``, where its output layer is a product."""
        agreement = self.alpha / 2 if self._passes_twice else None
        arguments = features, self.output_weight, labels, self.label_smoothing, agreement
        return smoothed_cross_entropy(*arguments, self._said, self.teacher_weight)

    def loss_of_logits(self, logits: Tensor, labels: Tensor) -> SmoothedLoss:
        """The loss from scores ``(N, V)``, for any other network or criterion."""
        if not self._said or not len(labels):
            return super().loss_of_logits(logits, labels)
        found = LitTransformer.loss_of_logits(self, logits, labels)
        target = _mean_of(self._said) if isinstance(self._said, list) else self._said.spread(logits.size(1))
        target = torch.cat((target, target)) if self._passes_twice else target
        taught = -(target * logits.log_softmax(-1)).sum(-1).mean()
        loss = (1 - self.teacher_weight) * found.loss + self.teacher_weight * taught
        return SmoothedLoss(loss + self._apart(logits) if self._passes_twice else loss, found.nll)

    @property
    def _passes_twice(self) -> bool:
        return self.alpha > 0 and super()._passes_twice

    @torch.no_grad()
    def _ask(self, batch: TranslationBatch) -> list[Teacher]:
        """What each teacher says of the real target tokens, the faster way where there is one."""
        real = batch.labels != PAD_ID
        return [_answer(network, batch, real) for network in self._networks]

    @torch.no_grad()
    def _ask_for_few(self, batch: TranslationBatch, top_k: int) -> Shortlist:
        """The likeliest of what they say together; some rows at a time, since all the distributions are large."""
        said, vocab_size = self._ask(batch), self.network.vocab_size
        step = max(1, _MAX_PROBS // vocab_size)
        parts = []
        for start in range(0, max(1, len(said[0].features)), step):  # once at least: there may be no token
            rows = slice(start, start + step)
            some = _mean_of([Teacher(one.features[rows], one.weight) for one in said])
            parts.append(some.topk(min(top_k, vocab_size), dim=1))
        probs, tokens = (torch.cat(column) for column in zip(*parts, strict=True))
        return Shortlist(tokens, probs)


def _answer(network: TranslationNetwork, batch: TranslationBatch, real: Tensor) -> Teacher:
    """The features and output layer of a teacher, or its logits where it is not made like that."""
    if not ends_in_a_product(network):
        return Teacher(network(batch.src, batch.tgt_input)[real])
    return Teacher(output_features(network, batch, real), output_matrix(network))


def _mean_of(said: list[Teacher]) -> Tensor:
    """The mean distribution ``(N, V)``."""
    logits = [one.features if one.weight is None else F.linear(one.features, one.weight) for one in said]
    return mean_distribution(logits, torch.promote_types(logits[0].dtype, torch.float32))
