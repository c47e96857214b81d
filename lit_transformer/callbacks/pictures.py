"""Pictures of the attention during training, for loggers that show pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lit_transformer.attention_view import AttentionView, attention_of
from lit_transformer.callbacks.writer import decoder
from lit_transformer.decoding import GreedySearch
from lit_transformer.interfaces import InputError
from lit_transformer.plotting import blank_figure, pixels_of, plot_attention, plot_overview
from lit_transformer.sharding import is_sharded
from lit_transformer.vocabulary import BOS_ID, EOS_ID

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AttentionPictures(Callback):
    """Shows in the logger, as training goes on, what the heads look at in sentences of your choice.

    Watch how heads find the words that they translate: that is when the loss begins to fall for good. Works with
    every logger that takes pictures, by ``add_figure`` (TensorBoard) or ``log_image`` (Weights & Biases), and needs the
    extra ``plot``, for TensorBoard ``tensorboard`` too. Only the first process draws; the others do not wait for it.
    A module of one's own needs ``LitTransformer``'s ``network`` and, without ``targets``, ``generate(src, search)``.
    In a configuration::

        trainer:
          logger: {class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: runs/tiny}}
          callbacks:
            - class_path: lit_transformer.AttentionPictures
              init_args: {sentences: [A dog sleeps.], targets: [Ein Hund schläft.], every_n_validations: 2}

    Args:
        sentences: Source sentences, always the same.
        targets: Their translations, as many. Then all pictures show the same words and can be compared. Without, the
            network translates for itself, greedily.
        every_n_validations: Draw in each n-th validation.
        kind: ``"overview"`` for one layer at a glance, or all heads of all layers of one attention: ``"encoder"``,
            ``"decoder"`` or ``"cross"``.
        layer: Layer of the overview, from 0, or from the end if negative.

    Raises:
        ValueError: If there are no sentences, as many targets as sentences are not given, or another argument is
            out of range.
        MisconfigurationException: If none of the trainer's loggers takes pictures, or there is no tokenizer.
        InputError: If matplotlib is missing, the network has no such layer or no room for a sentence, or the weights
            are divided over processes without a way to gather them.

    Example:
        >>> pictures = AttentionPictures(["I love cats"], targets=["나는 고양이를 좋아해"], every_n_validations=2)
    """

    def __init__(
        self,
        sentences: Sequence[str],
        targets: Sequence[str] | None = None,
        every_n_validations: int = 1,
        kind: str = "overview",
        layer: int = -1,
    ) -> None:
        for name, texts in {"sentences": sentences, "targets": targets}.items():
            if isinstance(texts, str) or (texts is not None and not all(text.strip() for text in texts)):
                raise ValueError(f"{name} must be a list of sentences, none of them empty; got {texts!r}")
        if not sentences or (targets is not None and len(targets) != len(sentences)):
            count = "none" if targets is None else len(targets)
            raise ValueError(f"as many targets as sentences are needed, one or more; got {len(sentences)} and {count}")
        if every_n_validations < 1:
            raise ValueError(f"every_n_validations must be at least 1, got {every_n_validations}")
        if kind not in ("overview", "encoder", "decoder", "cross"):
            raise ValueError(f"kind must be one of overview, encoder, decoder, cross; got {kind!r}")
        self.sentences, self.targets = list(sentences), None if targets is None else list(targets)
        self.every_n_validations, self.kind, self.layer = every_n_validations, kind, layer
        self.num_validations = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds out before training, in all processes alike, whether there is somebody to show pictures to."""
        self._check_layer(getattr(pl_module, "network", None))
        self._check_lengths(getattr(pl_module, "network", None), decoder(trainer))
        try:
            blank_figure()
        except ModuleNotFoundError as error:
            raise InputError(str(error)) from error
        found = any(takes_pictures(logger) for logger in trainer.loggers)
        if not trainer.strategy.broadcast(found):  # only the first process knows what its loggers can do
            names = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none is set"
            raise MisconfigurationException(
                f"{type(self).__name__} needs a logger that takes pictures, but of the trainer's loggers "
                f"({names}) none does; set trainer.logger to lightning.pytorch.loggers.TensorBoardLogger or another "
                "with add_figure or log_image, or leave the callback out"
            )

    def _check_layer(self, network: Any) -> None:
        for name in ("num_layers", "num_decoder_layers"):
            count = getattr(network, name, None)
            if self.kind == "overview" and isinstance(count, int) and not -count <= self.layer < count:
                raise InputError(f"{type(self).__name__} has layer={self.layer}, but the network has {name}={count}")

    def _check_lengths(self, network: Any, tokenizer: Any) -> None:
        room = getattr(network, "max_length", None)
        if not isinstance(room, int):
            return
        sides = ((self.sentences, tokenizer.encode_src, 0), (self.targets or [], tokenizer.encode_tgt, 1))
        for texts, encode, last in sides:  # the last token of a target is only predicted
            for text in texts:
                if (length := len(encode([text])[0]) - last) > room:
                    raise InputError(
                        f"{type(self).__name__} is to show {text[:60]!r}, which has {length} tokens, but the network "
                        f"reads no more than max_length={room}: leave it out, or shorten it"
                    )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws, if it is time for it."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self.num_validations += 1
        if self.num_validations % self.every_n_validations:
            return
        if trainer.world_size > 1 and (isinstance(trainer.strategy, FSDPStrategy) or is_sharded(pl_module)):
            raise InputError(
                f"{type(self).__name__} cannot look into weights that are sharded over processes; shard with "
                "LitTransformer and ModelParallelStrategy (configs/trainer/fsdp.yaml), or leave the callback out"
            )
        if not trainer.is_global_zero:
            return
        for number in range(len(self.sentences)):
            try:
                figure = self.draw(self.view(trainer, pl_module, number))
            except InputError as error:  # no reason to end a training
                rank_zero_warn(f"{type(self).__name__} draws nothing: {error}")
                return
            for logger in trainer.loggers:
                if takes_pictures(logger):
                    self.show(logger, f"attention/{number + 1}", figure, trainer.global_step)

    @torch.no_grad()
    def view(self, trainer: L.Trainer, pl_module: Any, number: int) -> AttentionView:
        """What the heads look at in one of the sentences."""
        tokenizer, source = decoder(trainer), self.sentences[number]
        src = tokenizer.encode_src([source])[0]
        with trainer.precision_plugin.forward_context():
            if self.targets is not None:
                text = self.targets[number]
                tgt = tokenizer.encode_tgt([text])[0]
            else:
                ids = torch.tensor([src], device=pl_module.device)
                found = pl_module.generate(ids, GreedySearch(max_extra_length=10))[0][0]
                tgt, text = [BOS_ID, *found.tokens, EOS_ID], tokenizer.decode(found.tokens)
            return attention_of(pl_module.network, tokenizer, src, [tgt], source, [text])

    def draw(self, view: AttentionView) -> Figure:
        """The picture of one sentence; override it to show something else."""
        tokens = view.maps, view.src_tokens, view.tgt_tokens
        if self.kind == "overview":
            return plot_overview(*tokens, layer=self.layer, title=view.title)
        return plot_attention(*tokens, kind=self.kind)

    def show(self, logger: Logger, name: str, figure: Figure, step: int) -> None:
        """Hands a picture to a logger; override it for loggers with other methods."""
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[pixels_of(figure)], step=step)
        else:
            logger.experiment.add_figure(name, figure, step, close=False)  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were."""
        return {"num_validations": self.num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting validations where the checkpoint stopped."""
        self.num_validations = state_dict["num_validations"]


def takes_pictures(logger: Logger) -> bool:
    """Whether a logger of this process can show pictures."""
    return hasattr(logger, "log_image") or hasattr(getattr(logger, "experiment", None), "add_figure")
