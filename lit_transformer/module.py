"""LitTransformer: training, validation and translation steps around any translation network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from lit_transformer.adam import fuse_on_cpu
from lit_transformer.adam import paper_adam as paper_adam
from lit_transformer.arguments import is_plain
from lit_transformer.decoding import BeamSearch
from lit_transformer.errors import InputError
from lit_transformer.interfaces import Hypothesis, Search, TranslationBatch, TranslationNetwork
from lit_transformer.loss import SmoothedLoss, smoothed_cross_entropy
from lit_transformer.muon import WHOLE_WEIGHTS, MuonAdam
from lit_transformer.network_checks import check_agreement, warn_of_checkpoints, warn_of_compilation
from lit_transformer.nn import Transformer
from lit_transformer.nn.layer_compilation import explaining_compilation
from lit_transformer.nn.outputs import ends_in_a_product, output_features, output_matrix
from lit_transformer.nn.preparing import Prepared, prepare_if_possible
from lit_transformer.sharding import ShardedWeights
from lit_transformer.speed import Speed
from lit_transformer.step_sums import StepSums, divide_by_tokens
from lit_transformer.token_mean import TokenMean
from lit_transformer.vocabulary import PAD_ID

_REBUILD = "lightning.pytorch.cli.instantiate_module"  # how load_from_checkpoint turns plain data into objects


def _word_tables(network: TranslationNetwork) -> list[Tensor]:
    """The weights with a row for each token or place: embeddings and output layers."""
    is_own = isinstance(network, Transformer)
    found: list[Tensor] = []
    for module in network.modules():
        is_wide = isinstance(module, nn.Linear) and module.out_features == network.vocab_size
        is_output = module is network.projection if is_own else is_wide
        if isinstance(module, nn.Embedding) or is_output:
            found += [one for one in module.parameters(recurse=False) if one.ndim == 2]
    return found


@contextmanager
def _searching(device_type: str, is_prepared: bool) -> Iterator[None]:
    """Mixed precision, if it is on, with each weight cast once and not in each step, as Lightning would have it.

    A network that is prepared for searches has a precision of its own. Elsewhere inference mode is the faster one, but
    it forgets what was cast.
    """
    if not is_prepared and torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, dtype=torch.get_autocast_dtype(device_type), cache_enabled=True):
            yield
        torch.clear_autocast_cache()  # the next search may have other weights
    else:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False) if is_prepared else nullcontext():
            yield


class LitTransformer(L.LightningModule):
    """Trains a translation network and translates with it.

    Knows token ids only: text belongs to the data module, and callbacks join the two. Logs ``train/loss``,
    ``train/perplexity``, ``train/tokens_per_second``, ``val/loss``, ``val/perplexity``, ``test/loss`` and
    ``test/perplexity``. Losses are means over real target tokens, in training those of all steps since the last
    logged one; perplexity is the exponential of the loss without smoothing, per token.

    Each target token of an optimizer step weighs the same, however the step is cut into micro-batches
    (``accumulate_grad_batches``) and processes: gradients are sums over tokens, divided once by the number of tokens
    of all of them, before clipping. The same holds for a ``criterion`` and for an own ``compute_loss``, which give
    means. A subclass that has its own ``on_before_optimizer_step`` calls this one first, and finds the means then;
    that of a callback comes before it, and still sees sums. The other hooks that a subclass overrides have to
    call this class's too. With ``automatic_optimization=False`` none of this is done, and gradients are those of the
    loss that the subclass gives to ``manual_backward``.

    Source: Vaswani et al. 2017, sections 5.3 (optimizer) and 5.4 (label smoothing).

    Args:
        network: What is trained: any ``TranslationNetwork``.
        label_smoothing: Probability taken from the right token and spread over the vocabulary. Ignored where
            ``criterion`` is given.
        optimizer: Makes the optimizer from the parameters; its learning rate is the peak of the warm-up. The
            default is the paper's Adam; :class:`~lit_transformer.MuonAdam` takes fewer passes over the text.
        search: How ``generate`` and ``predict`` decode, and what ``BLEUEvaluation`` scores. The default is the paper's
            beam search, of which ``BLEUEvaluation`` has settings of its own.
        criterion: The loss, a module that maps logits ``(N, V)`` and labels ``(N,)`` without padding to their mean.
        compile_layers: Whether ``fit`` compiles each layer (``network.sharded_parts()``) by ``torch.compile``,
            once for batches of nearly any shape: those of one sentence and, on a CPU, those without padding compile
            again. Checkpoints stay as they are, and the loss still keeps a part of the logits at a time, unlike with a
            network that is compiled as a whole. For GPUs: on a CPU it takes the place of code that skips padding.
            Needs what ``torch.compile`` needs, which is a compiler.
        activation_checkpointing: Whether training keeps the output of each layer only, and computes what is inside
            again for gradients: less memory, about a third more time, and the same gradients. For GPUs too: on a CPU
            it takes the place of code that skips padding and keeps less anyway.

    Raises:
        InputError: If ``activation_checkpointing`` meets a network that cannot do it.
        ValueError: If ``label_smoothing`` is not in [0, 1), or ``compile_layers`` meets a network without parts.

    Example:
        >>> from lit_transformer import Transformer
        >>> module = LitTransformer(Transformer(vocab_size=16, num_layers=1, d_model=8, d_ff=16, num_heads=2))
        >>> hypotheses = module.generate(torch.tensor([[5, 6, 3]]))
        >>> len(hypotheses), len(hypotheses[0])
        (1, 1)
    """

    def __init__(
        self,
        network: TranslationNetwork,
        label_smoothing: float = 0.1,
        optimizer: OptimizerCallable = paper_adam,
        search: Search | None = None,
        criterion: nn.Module | None = None,
        compile_layers: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        if compile_layers and not network.sharded_parts():
            raise ValueError(
                f"compile_layers needs a network that names its layers, but sharded_parts of {type(network).__name__} "
                "is empty; override it there, or leave compile_layers out"
            )
        if activation_checkpointing:
            network.checkpoint_activations()
        self._remember_arguments(network)
        self.network = network
        self.criterion = criterion
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.compile_layers = compile_layers
        self.has_own_search = search is not None
        self.search = search or BeamSearch()
        self.val_loss, self.val_nll = TokenMean(), TokenMean()
        self.test_loss, self.test_nll = TokenMean(), TokenMean()
        self._sums = StepSums()
        self._speed = Speed()
        self._sharded: ShardedWeights | None = None
        self._is_evaluating = False
        self._prepared: list[Prepared] = []  # a list, so that its weights are not taken for the module's

    def _remember_arguments(self, network: TranslationNetwork) -> None:
        """Keeps the constructor's plain arguments for checkpoints, the network as its class path and arguments.

        Built from YAML or by hand, the checkpoint is the same: it loads with ``weights_only=True`` and
        ``load_from_checkpoint`` needs nothing else. Live objects (a criterion made in Python) are left out.
        """
        with warnings.catch_warnings():  # Lightning advises against modules among them, which go in the next line
            warnings.simplefilter("ignore", UserWarning)
            self.save_hyperparameters(ignore=["network"])
        for name in [name for name, value in self.hparams.items() if not is_plain(value)]:
            del self.hparams[name]
        if plan := self._building_plan(network):
            self.save_hyperparameters(plan)

    def _building_plan(self, network: TranslationNetwork) -> dict[str, Any]:
        """What a checkpoint needs to build the network again, where that can be said in plain data."""
        return {"network": network.spec, "_instantiator": _REBUILD} if is_plain(network.spec) else {}

    def configure_model(self) -> None:
        """Divides the network over all processes, where the strategy is Lightning's ``ModelParallelStrategy``."""
        if self.device_mesh is not None and self._sharded is None:
            self._sharded = ShardedWeights(self.network, self.device_mesh.device_type, self.trainer.world_size)

    def forward(self, src: Tensor, tgt_input: Tensor) -> Tensor:
        """Logits ``(B, T, V)`` of the next token at each position of ``tgt_input`` ``(B, T)``."""
        logits: Tensor = self.network(src, tgt_input)
        return logits

    def compute_loss(self, batch: TranslationBatch) -> SmoothedLoss:
        """The loss to minimise and the negative log-likelihood without smoothing, both means per real token.

        Override it to train on something else. A batch without a single label has loss 0.
        """
        real = batch.labels != PAD_ID
        labels = batch.labels[real]  # (N,)
        if self._may_skip_logits() and ends_in_a_product(self.network, self._sharded is not None):
            in_training = self.network.training and torch.is_grad_enabled()
            return self.loss_of_features(output_features(self.network, batch, real, in_training), labels)
        logits = self(batch.src, batch.tgt_input)[real]  # (N, V)
        return self.loss_of_logits(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)

    def _may_skip_logits(self) -> bool:
        """Whether the loss needs no logits of all tokens at once: ours, or an own ``loss_of_features``."""
        order = type(self).__mro__
        by_logits, by_features = (
            next(place for place, one in enumerate(order) if name in vars(one))
            for name in ("loss_of_logits", "loss_of_features")
        )
        has_own_logits = type(self).forward is not LitTransformer.forward
        return by_features <= by_logits and self.criterion is None and not has_own_logits

    @property
    def output_weight(self) -> Tensor:
        """The matrix ``(V, D)`` that turns features into logits.

        D is ``d_model``, or 8 more where the output layer has a bias, which is a column of the matrix then.
        """
        return output_matrix(self.network)  # type: ignore[arg-type]

    def loss_of_features(self, features: Tensor, labels: Tensor) -> SmoothedLoss:
        """The loss from what the decoder says of each token ``(N, D)``, where its output layer is a product.

        The logits are ``features @ self.output_weight.T``, also where that layer has a bias.
        """
        return smoothed_cross_entropy(features, self.output_weight, labels, self.label_smoothing)

    def loss_of_logits(self, logits: Tensor, labels: Tensor) -> SmoothedLoss:
        """The loss from scores ``(N, V)``, for any other network or criterion."""
        if not len(labels):
            return SmoothedLoss(logits.sum(), logits.sum().detach())
        nll = F.cross_entropy(logits.detach(), labels)
        criterion = self.criterion or nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)
        return SmoothedLoss(criterion(logits, labels), nll)

    def on_train_batch_start(self, batch: TranslationBatch, batch_idx: int) -> None:
        """Notes how much the batch weighs; frees the gradients of the step before, for the memory's sake."""
        self._sums.start_batch(batch.num_labels)
        if self.automatic_optimization and batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.zero_grad()

    def training_step(self, batch: TranslationBatch, batch_idx: int) -> Tensor:
        """One step of teacher forcing; returns the loss, a mean per real target token."""
        with self._explaining():
            loss, nll = self.compute_loss(batch)
        self._sums.note(loss, nll)
        return loss

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Begins to count the tokens of an optimizer step, just where its gradients begin."""
        self._sums.start_step()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Adds the gradient of a micro-batch, weighed by its target tokens; in manual optimization as it is."""
        with self._explaining():
            super().backward(self._sums.weigh(loss) if self.automatic_optimization else loss, *args, **kwargs)

    def _explaining(self) -> AbstractContextManager[None]:
        return explaining_compilation() if self.compile_layers else nullcontext()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns sums of gradients into means over the target tokens of all micro-batches and processes.

        Lightning has divided them by the number of micro-batches, the strategy by the number of processes, and a
        gradient scaler has been undone; clipping comes after. Manual optimization keeps the gradients that it made.
        """
        if not self.automatic_optimization:
            return
        trainer: Any = self.trainer  # Lightning does not annotate all attributes
        totals = self._sums.all_processes(self.device)
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        divide_by_tokens(parameters, totals, trainer.world_size * trainer.accumulate_grad_batches)
        if self._sums.has_means:
            was_logged = self.global_step % (trainer.log_every_n_steps or 1) == 0
            loss, nll = self._sums.since_logged(totals, starts_anew=was_logged)
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/perplexity", nll.exp())

    def on_train_batch_end(self, outputs: Any, batch: TranslationBatch, batch_idx: int) -> None:
        """Logs real source and target tokens per second, over the steps since the last logged one."""
        trainer: Any = self.trainer
        if not trainer.log_every_n_steps:  # nothing is ever logged
            return
        tokens = (batch.src != PAD_ID).sum() + batch.num_labels
        speed = self._speed.count(tokens, self.global_step, trainer.log_every_n_steps)
        if speed is not None:
            speed *= trainer.world_size
            self.log("train/tokens_per_second", torch.tensor(speed), prog_bar=True, batch_size=len(batch))

    def on_fit_start(self) -> None:
        """Checks that network and data go together, and compiles the layers if they are to be.

        Warns where checkpoints will not say how to build the network, so that nothing but this program can use them,
        and where the network was compiled as a whole.

        Raises:
            InputError: If the tokenizer has another size or other sides than the network, or sentences are longer than
                it can read, where both say theirs.
        """
        warn_of_checkpoints(self.network)
        warn_of_compilation(self.network)
        check_agreement(self.network, getattr(self.trainer, "datamodule", None))
        if self.compile_layers:
            for layer in self.network.sharded_parts():
                layer.compile(dynamic=True)

    def on_fit_end(self) -> None:
        """Takes the compilation of the layers away again, so that what follows finds the network as it was."""
        if self.compile_layers:
            for layer in self.network.sharded_parts():
                layer._compiled_call_impl = None

    def on_train_start(self) -> None:
        """Starts the training speed anew; ends an evaluation that was broken off, since weights change from here on."""
        self._speed.stop()
        self._is_evaluating = False
        self._prepared.clear()

    def on_validation_start(self) -> None:
        """Leaves the time that validation takes out of the training speed; gathers weights that are sharded."""
        self._speed.stop()
        self._gather()

    def on_test_start(self) -> None:
        """Gathers weights that are sharded: from here on the processes have different numbers of steps."""
        self._gather()

    def on_predict_start(self) -> None:
        """Gathers weights that are sharded: from here on the processes have different numbers of steps."""
        self._gather()

    def on_validation_end(self) -> None:
        """Leaves each process its own part of the weights again."""
        self._release()

    def on_test_end(self) -> None:
        """Leaves each process its own part of the weights again."""
        self._release()

    def on_predict_end(self) -> None:
        """Leaves each process its own part of the weights again."""
        self._release()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes sums yet to be logged, and tied weights once, even if they were gathered under several names.

        A subclass may have called ``save_hyperparameters`` in a way that forgets the network, or that keeps live
        objects, with which no checkpoint loads safely.
        """
        given = checkpoint.get("hyper_parameters", {}).items()
        kept = {name: value for name, value in given if is_plain(value) or isinstance(value, Tensor)}
        checkpoint["hyper_parameters"] = {**self._building_plan(self.network), **kept}
        checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_NAME, None)  # all stand under their own names
        if (sums := self._sums.state()) is not None:
            checkpoint["train_totals"] = sums
        if self._sharded is None:
            return
        first: dict[int, Tensor] = {}
        weights = checkpoint["state_dict"]  # empty on all processes but the one that writes
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if name in weights:
                weights[name] = first.setdefault(id(parameter), weights[name])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the sums, so that a resumed run logs what one that never stopped does."""
        if "train_totals" in checkpoint:
            self._sums.load_state(checkpoint["train_totals"])

    def _gather(self) -> None:
        self._is_evaluating = True
        self._prepared.clear()
        if self._sharded is not None:
            self._sharded.gather()

    def _release(self) -> None:
        self._is_evaluating = False
        self._prepared.clear()
        if self._sharded is not None:
            self._sharded.release()

    def notice_new_weights(self) -> None:
        """Must be called by whoever changes weights in place (``.data``) between the start and end of an evaluation."""
        self._prepared.clear()

    def on_validation_epoch_start(self) -> None:
        """Starts the means anew, also after a validation that was broken off."""
        self.val_loss.reset()
        self.val_nll.reset()

    def on_test_epoch_start(self) -> None:
        """Starts the means anew, also after a test that was broken off."""
        self.test_loss.reset()
        self.test_nll.reset()

    def validation_step(self, batch: TranslationBatch, batch_idx: int) -> None:
        """Adds a batch to the validation loss."""
        self._evaluate(batch, self.val_loss, self.val_nll)

    def test_step(self, batch: TranslationBatch, batch_idx: int) -> None:
        """Adds a batch to the test loss."""
        self._evaluate(batch, self.test_loss, self.test_nll)

    def _evaluate(self, batch: TranslationBatch, loss_mean: TokenMean, nll_mean: TokenMean) -> None:
        with self._explaining():
            loss, nll = self.compute_loss(batch)
        loss_mean.update(loss, batch.num_labels)
        nll_mean.update(nll, batch.num_labels)

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over the whole validation set, all processes together."""
        self._log_means("val", self.val_loss, self.val_nll)

    def on_test_epoch_end(self) -> None:
        """Logs the mean over the whole test set, all processes together."""
        self._log_means("test", self.test_loss, self.test_nll)

    def _log_means(self, stage: str, loss_mean: TokenMean, nll_mean: TokenMean) -> None:
        means = {"loss": loss_mean.compute(), "perplexity": nll_mean.compute().exp()}  # of all processes together
        for name, value in means.items():
            self.log(f"{stage}/{name}", value, prog_bar=stage == "val", sync_dist=True)

    def predict_step(self, batch: TranslationBatch, batch_idx: int) -> list[list[Hypothesis]]:
        """Hypotheses for each sentence of the batch, best first."""
        return self.generate(batch.src)

    def generate(self, src: Tensor, search: Search | None = None) -> list[list[Hypothesis]]:
        """Translates source ids ``(B, S)``: hypotheses for each sentence, best first.

        Args:
            src: Source ids, each row closed by EOS and padded on the right.
            search: Used instead of the module's own search.
        """
        in_training = [part for part in self.network.modules() if part.training]
        self.network.eval()
        try:
            with self._sharded.whole() if self._sharded else nullcontext(), torch.no_grad():
                network = self._for_search()
                with _searching(src.device.type, is_prepared=network is not self.network):
                    return (search or self.search)(network, src)
        finally:
            for part in in_training:  # what was frozen stays so
                part.training = True

    def _for_search(self) -> TranslationNetwork:
        """The network, on a CPU prepared for searches where it can be.

        Weights hold still from the start to the end of an evaluation, so it is prepared once for each. Elsewhere it
        is prepared anew for each call: not every change of a weight can be noticed.
        """
        if self._sharded is not None:
            return self.network
        if self._prepared and self._prepared[0].is_current():
            return self._prepared[0]
        prepared = prepare_if_possible(self.network)
        self._prepared = [prepared] if prepared is not None and self._is_evaluating else []
        return self.network if prepared is None else prepared

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over all parameters; the schedule is a callback's business."""
        optimizer = self.optimizer(self.parameters())
        if isinstance(optimizer, MuonAdam):
            strategy = None if self._trainer is None else self.trainer.strategy
            if isinstance(strategy, (FSDPStrategy, ModelParallelStrategy)):
                raise InputError(WHOLE_WEIGHTS)
            optimizer.leave_to_adam(_word_tables(self.network))
        fuse_on_cpu(optimizer)
        return optimizer
