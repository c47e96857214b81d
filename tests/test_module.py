"""LitTransformer: the right loss on every path, honest means, checkpoints that rebuild it, networks that learn."""

import copy
import math
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from tiny_run import tiny_run as tiny_run
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from lit_transformer import module as module_file
from lit_transformer import speed
from lit_transformer.data import TeachingCorpus, TranslationDataModule
from lit_transformer.decoding import BeamSearch, GreedySearch
from lit_transformer.errors import InputError
from lit_transformer.interfaces import SentencePair, TranslationBatch, TranslationNetwork
from lit_transformer.loss import SmoothedLoss
from lit_transformer.metrics import CorpusBLEU
from lit_transformer.module import LitTransformer
from lit_transformer.nn import PreparedTransformer, Transformer
from lit_transformer.nn.outputs import ends_in_a_product
from lit_transformer.rdrop import RDropTransformer
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # most fits validate nothing
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),  # inside Lightning
]

V = 32
SMALL: dict[str, Any] = {"num_layers": 1, "d_model": 16, "d_ff": 32, "num_heads": 2, "dropout": 0.0}
Pair = tuple[list[int], list[int]]


def make_pairs(count: int, longest: int = 7) -> list[Pair]:
    """Random sentences as ids, without special tokens."""
    draw = random.Random(count)
    return [tuple([draw.randrange(4, V) for _ in range(draw.randint(1, longest))] for _ in "st") for _ in range(count)]  # type: ignore[misc]


def padded(rows: Sequence[list[int]], extra: int = 0) -> Tensor:
    width = max(map(len, rows)) + extra
    return torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])


def make_batch(pairs: Sequence[Pair], extra: int = 0) -> TranslationBatch:
    src, tgt = [[*src, EOS_ID] for src, _ in pairs], [[BOS_ID, *tgt, EOS_ID] for _, tgt in pairs]
    return TranslationBatch(padded(src, extra), padded(tgt, extra))


def loader(batches: list[TranslationBatch]) -> DataLoader[TranslationBatch]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def make_trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    quiet |= {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return L.Trainer(callbacks=list(callbacks), **(quiet | options))


def fit(module: L.LightningModule, batches: Any, **options: Any) -> L.Trainer:
    """Trains without validation."""
    trainer = make_trainer(**options)
    trainer.fit(module, loader(batches) if isinstance(batches, list) else batches)
    return trainer


def reference_loss(network: nn.Module, batch: TranslationBatch, smoothing: float) -> Tensor:
    """torch's own criterion on all the logits, told to pass over padding."""
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing, ignore_index=PAD_ID)
    loss: Tensor = criterion(network(batch.src, batch.tgt_input).flatten(0, 1), batch.labels.flatten())
    return loss


# The loss on every path


class OwnForward(Transformer):
    def forward(self, src: Tensor, tgt_input: Tensor) -> Tensor:
        return super().forward(src, tgt_input) * 0.5


class OwnProject(Transformer):
    def project(self, features: Tensor) -> Tensor:
        return super().project(features) * 0.5


class OwnModule(LitTransformer):
    def forward(self, src: Tensor, tgt_input: Tensor) -> Tensor:
        return super().forward(src, tgt_input) * 0.5


def with_bias(network: Transformer) -> None:
    network.projection = nn.Linear(16, V)


def with_hook(network: Transformer) -> None:
    network.projection.register_forward_hook(lambda *args: args[-1] * 0.5)


def with_outer_hook(network: Transformer) -> None:
    network.register_forward_hook(lambda *args: args[-1] * 0.5)


def compiled(network: Transformer) -> None:
    network.compile(backend=lambda graph, _: lambda *inputs: tuple(0.5 * out for out in graph.forward(*inputs)))


def unchanged(network: Transformer) -> None: ...


@pytest.mark.parametrize("change", [unchanged, with_bias, with_hook, with_outer_hook])
@pytest.mark.parametrize("kind", [Transformer, OwnForward, OwnProject])
@pytest.mark.parametrize("module_kind", [LitTransformer, OwnModule])
def test_loss_and_gradients_are_those_of_the_logits(module_kind: Any, kind: Any, change: Any) -> None:
    module = module_kind(kind(V, **SMALL), label_smoothing=0.2)
    change(module.network)
    module.double()
    batch = make_batch(make_pairs(5))
    loss, nll = module.compute_loss(batch)
    expected = reference_loss(module, batch, 0.2)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(nll, reference_loss(module, batch, 0.0), rtol=1e-9, atol=0)
    assert not nll.requires_grad
    parameters = dict(module.named_parameters())
    for name, mine, theirs in zip(
        parameters, *(torch.autograd.grad(one, parameters.values()) for one in (loss, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_only_our_own_output_layer_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_file, "smoothed_cross_entropy", lambda *args: "chunked")
    batch = make_batch(make_pairs(2))
    for change in (unchanged, with_bias):
        module = LitTransformer(Transformer(V, **SMALL))
        change(module.network)
        assert module.compute_loss(batch) == "chunked"
    for change in (with_hook, with_outer_hook, compiled):
        module = LitTransformer(Transformer(V, **SMALL))
        change(module.network)
        if change is not compiled:  # no compiler is needed to see which way is taken
            assert module.compute_loss(batch) != "chunked"
        assert not ends_in_a_product(module.network)


class HalfOfLogits(LitTransformer):
    def loss_of_logits(self, logits: Tensor, labels: Tensor) -> Any:
        loss, nll = super().loss_of_logits(logits, labels)
        return SmoothedLoss(loss / 2, nll)


class HalfOfFeatures(HalfOfLogits):
    def loss_of_features(self, features: Tensor, labels: Tensor) -> Any:
        return self.loss_of_logits(features @ self.output_weight.T, labels)


class HalfOfRDrop(RDropTransformer):
    def loss_of_logits(self, logits: Tensor, labels: Tensor) -> Any:
        loss, nll = super().loss_of_logits(logits, labels)
        return SmoothedLoss(loss / 2, nll)


@pytest.mark.parametrize("kind", [HalfOfLogits, HalfOfFeatures, HalfOfRDrop])
def test_an_own_loss_of_either_kind_counts(kind: type[LitTransformer]) -> None:
    network, batch = Transformer(V, **SMALL), make_batch(make_pairs(5))
    half, whole = kind(network).compute_loss(batch), LitTransformer(network).compute_loss(batch)
    torch.testing.assert_close(half.loss, whole.loss / 2)
    torch.testing.assert_close(half.nll, whole.nll)


class Manual(LitTransformer):
    """Steps its optimizer itself, by the plain mean of two batches."""

    def __init__(self, network: TranslationNetwork) -> None:
        super().__init__(network, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
        self.automatic_optimization = False

    def training_step(self, batch: TranslationBatch, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.compute_loss(batch).loss / 2)
        if batch_idx % 2:
            optimizer.step()
            self.zero_grad()


def test_manual_optimization_has_the_gradients_that_it_makes() -> None:
    batches = [make_batch(make_pairs(count)) for count in (2, 6, 3, 5)]
    module = Manual(Transformer(V, **SMALL))
    expected = copy.deepcopy(module.network)
    descent = torch.optim.SGD(expected.parameters(), lr=0.5)
    for pair in (batches[:2], batches[2:]):
        sum(reference_loss(expected, batch, 0.1) / 2 for batch in pair).backward()  # type: ignore[union-attr]
        descent.step()
        descent.zero_grad()
    fit(module, batches, max_epochs=1)
    torch.testing.assert_close(module.network.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-6)


def test_label_smoothing_is_checked() -> None:
    for smoothing in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"label_smoothing must be at least 0 and below 1, got"):
            LitTransformer(Transformer(V, **SMALL), label_smoothing=smoothing)


class Margin(nn.Module):
    """A loss of one's own, with a weight to train."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.tensor(margin))
        self.seen: list[Tensor] = []

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(labels)
        right = logits.gather(1, labels[:, None])
        return (logits - right + self.margin).relu().mean()


def test_own_criterion_sees_real_tokens_only() -> None:
    criterion = Margin()
    module = LitTransformer(Transformer(V, **SMALL), criterion=criterion, label_smoothing=0.5)
    pairs = make_pairs(4)
    batch = make_batch(pairs, extra=3)
    loss, nll = module.compute_loss(batch)
    (labels,) = criterion.seen
    assert labels.tolist() == [token for _, tgt in pairs for token in [*tgt, EOS_ID]]
    logits = module(batch.src, batch.tgt_input)[batch.labels != PAD_ID]
    torch.testing.assert_close(loss, criterion(logits, labels))
    torch.testing.assert_close(nll, reference_loss(module, batch, 0.0))
    loss.backward()
    assert criterion.margin.grad is not None


@pytest.mark.parametrize("criterion", [None, Margin()])
@pytest.mark.parametrize("extra", [1, 9])
def test_padding_changes_nothing(criterion: nn.Module | None, extra: int) -> None:
    module = LitTransformer(Transformer(V, **SMALL), criterion=criterion).double()
    pairs = make_pairs(6)
    losses = [torch.stack(module.compute_loss(make_batch(pairs, extra=amount))) for amount in (0, extra)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_weighted_by_tokens_the_cut_into_batches_changes_nothing(size: int) -> None:
    module = LitTransformer(Transformer(V, **SMALL)).double()
    pairs = make_pairs(9)
    whole = make_batch(pairs)
    batches = [make_batch(pairs[i : i + size]) for i in range(0, len(pairs), size)]
    total = sum(torch.stack(module.compute_loss(batch)) * batch.num_labels for batch in batches)
    torch.testing.assert_close(total / whole.num_labels, torch.stack(module.compute_loss(whole)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("criterion", [None, Margin()])
def test_a_batch_without_labels_moves_nothing(criterion: nn.Module | None) -> None:
    module = LitTransformer(Transformer(V, **SMALL), criterion=criterion)
    batch = make_batch(make_pairs(3))
    batch.tgt.fill_(PAD_ID)
    loss, nll = module.compute_loss(batch)
    loss.backward()
    assert (loss.item(), nll.item()) == (0.0, 0.0)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in module.parameters())


# What is logged


class Memory(Logger):
    """Remembers what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    name, version = "memory", "0"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step or 0, dict(metrics)))

    def column(self, name: str) -> list[tuple[int, float]]:
        return [(step, row[name]) for step, row in self.rows if name in row]


@pytest.mark.parametrize("size", [1, 4, 10])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_means_are_those_of_the_whole_set(stage: str, size: int) -> None:
    module = LitTransformer(Transformer(V, **SMALL), label_smoothing=0.1)
    pairs = make_pairs(10)
    batches = [make_batch(pairs[i : i + size]) for i in range(0, len(pairs), size)]
    nothing = make_batch(pairs[:1])
    nothing.tgt.fill_(PAD_ID)  # what a process gets that has no sentence left
    (found,) = getattr(make_trainer(), stage)(module, loader([*batches, nothing]), verbose=False)
    losses = [reference_loss(module, make_batch([pair]), 0.1).item() * (len(pair[1]) + 1) for pair in pairs]
    nlls = [reference_loss(module, make_batch([pair]), 0.0).item() * (len(pair[1]) + 1) for pair in pairs]
    tokens, prefix = sum(len(tgt) + 1 for _, tgt in pairs), {"validate": "val", "test": "test"}[stage]
    assert found.keys() == {f"{prefix}/loss", f"{prefix}/perplexity"}
    assert found[f"{prefix}/loss"] == pytest.approx(sum(losses) / tokens, rel=1e-5)
    assert found[f"{prefix}/perplexity"] == pytest.approx(math.exp(sum(nlls) / tokens), rel=1e-5)


def test_a_broken_validation_leaves_nothing_behind() -> None:
    class Broken(LitTransformer):
        is_broken = True

        def validation_step(self, batch: TranslationBatch, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if self.is_broken:
                raise RuntimeError("out of coffee")

    module = Broken(Transformer(V, **SMALL))
    batches = [make_batch(make_pairs(count)) for count in (2, 5)]
    with pytest.raises(RuntimeError, match="out of coffee"):
        make_trainer().validate(module, loader(batches[1:]), verbose=False)
    module.is_broken = False
    for inference_mode in (True, False):  # the second meets what the first has left behind
        (found,) = make_trainer(inference_mode=inference_mode).validate(module, loader(batches[:1]), verbose=False)
        assert found["val/loss"] == pytest.approx(reference_loss(module, batches[0], 0.1).item(), rel=1e-5)


def test_logged_names_and_values() -> None:
    logger = Memory()
    module = LitTransformer(Transformer(V, **SMALL))
    batches = [make_batch(make_pairs(count)) for count in (2, 3, 4, 5)]
    start = reference_loss(copy.deepcopy(module), batches[0], 0.1).item()
    start_nll = reference_loss(copy.deepcopy(module), batches[0], 0.0).item()
    make_trainer(logger=logger, max_epochs=2, log_every_n_steps=1).fit(module, loader(batches), loader(batches[:2]))
    names = set().union(*(row for _, row in logger.rows))
    assert names == {
        *("train/loss", "train/perplexity", "train/tokens_per_second", "val/loss", "val/perplexity"),
        "epoch",  # Lightning's own
    }
    assert logger.column("train/loss")[0] == (0, pytest.approx(start))
    assert logger.column("train/perplexity")[0] == (0, pytest.approx(math.exp(start_nll)))
    assert [step for step, _ in logger.column("val/loss")] == [3, 7]
    final = [reference_loss(module, batch, 0.1).item() for batch in batches[:2]]
    weights = [int(batch.num_labels) for batch in batches[:2]]
    mean = sum(one * weight for one, weight in zip(final, weights, strict=True)) / sum(weights)
    assert logger.column("val/loss")[-1] == (
        7,
        pytest.approx(mean, rel=1e-5),
    )  # the first epoch has left nothing behind


def test_logged_losses_are_means_over_all_tokens_since_the_last_ones(tmp_path: Path) -> None:
    batches = [make_batch(make_pairs(count), extra=count) for count in (2, 7, 3, 5, 4, 6, 2)]
    tokens = [int(batch.num_labels) for batch in batches]

    def losses(every: int, name: str = "", **options: Any) -> dict[int, float]:
        torch.manual_seed(2)
        logger, module = Memory(), LitTransformer(Transformer(V, **{**SMALL, "dropout": 0.0}))
        trainer = make_trainer(logger=logger, max_epochs=1, log_every_n_steps=every)
        trainer.fit(module, loader(batches), **options)
        if name:
            trainer.save_checkpoint(tmp_path / name)
        return {step: float(loss) for step, loss in logger.column("train/loss")}

    single = losses(every=1)
    means = losses(every=3)
    assert means == {
        last: pytest.approx(sum(single[step] * tokens[step] for step in (last - 2, last - 1, last)) / total)
        for last in (2, 5)
        for total in [sum(tokens[last - 2 : last + 1])]
    }

    batches, rest = batches[:4], batches[4:]  # stops between two logged steps
    losses(every=3, name="four.ckpt")
    torch.manual_seed(2)
    logger, module = Memory(), LitTransformer(Transformer(V, **{**SMALL, "dropout": 0.0}))
    trainer = make_trainer(logger=logger, max_epochs=2, log_every_n_steps=3)
    trainer.fit(module, loader(rest), ckpt_path=tmp_path / "four.ckpt", weights_only=True)
    assert dict(logger.column("train/loss"))[5] == means[5]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_speed_counts_real_tokens_of_all_batches(monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    every, seconds_per_step = 2, 10.0
    logger, module = Memory(), LitTransformer(Transformer(V, **SMALL))
    batches = [make_batch(make_pairs(2 + number), extra=number) for number in range(6 * accumulate)]
    options: dict[str, Any] = {"max_epochs": 1, "log_every_n_steps": every, "accumulate_grad_batches": accumulate}
    trainer = make_trainer(logger=logger, **options)
    clock = SimpleNamespace(perf_counter=lambda: seconds_per_step * trainer.global_step)
    monkeypatch.setattr(speed, "time", clock)
    trainer.fit(module, loader(batches))
    tokens = [int((batch.src != PAD_ID).sum() + (batch.labels != PAD_ID).sum()) for batch in batches]
    # The clock starts behind the first batch, which is step 1 without accumulation and step 0 with it.
    ends = [every * accumulate * number for number in (1, 2, 3)]
    starts = [1, *ends[:-1]]
    elapsed = [seconds_per_step * (every - (accumulate == 1)), seconds_per_step * every, seconds_per_step * every]
    expected = [sum(tokens[a:b]) / time for a, b, time in zip(starts, ends, elapsed, strict=True)]
    assert logger.column("train/tokens_per_second") == [
        (step, pytest.approx(value)) for step, value in zip((1, 3, 5), expected, strict=True)
    ]


def test_speed_leaves_validation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pause(L.Callback):
        """An hour passes in each validation."""

        hours = 0

        def on_validation_end(self, *args: Any) -> None:
            self.hours += 1

    logger, pause = Memory(), Pause()
    trainer = make_trainer(pause, logger=logger, max_epochs=1, log_every_n_steps=2, val_check_interval=2)
    clock = SimpleNamespace(perf_counter=lambda: trainer.global_step + 3600.0 * pause.hours)
    monkeypatch.setattr(speed, "time", clock)
    batch = make_batch(make_pairs(3))
    trainer.fit(LitTransformer(Transformer(V, **SMALL)), loader([batch] * 6), loader([batch]))
    tokens = int((batch.src != PAD_ID).sum() + batch.num_labels)
    assert [value for _, value in logger.column("train/tokens_per_second")] == [pytest.approx(tokens)] * 3


def test_a_trainer_that_never_logs() -> None:
    batch = make_batch(make_pairs(3))
    module = LitTransformer(Transformer(V, **SMALL))
    assert fit(module, [batch], max_steps=3, max_epochs=-1, log_every_n_steps=0).global_step == 3
    assert module._speed._tokens == []  # nothing piles up


class Shared(torch.utils.data.IterableDataset[TranslationBatch]):
    """Batches dealt over the processes in turn: one of two processes gets one more than the other."""

    def __init__(self, batches: list[TranslationBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[TranslationBatch]:
        rank, size = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        return iter(self.batches[rank::size])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # newer Pythons, in a process with threads
def test_two_processes_log_the_means_of_the_whole_set() -> None:
    module = LitTransformer(Transformer(V, **SMALL))
    pairs = make_pairs(9)
    batches = DataLoader(Shared([make_batch(pairs[i : i + 2]) for i in range(0, 9, 2)]), batch_size=None)
    (alone,) = make_trainer().validate(module, batches, verbose=False)
    options = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    (together,) = make_trainer(**options).validate(module, batches, verbose=False)
    assert together == pytest.approx(alone, rel=1e-5)


# The optimizer


def test_the_optimizer_is_the_papers() -> None:
    module = LitTransformer(Transformer(V, **SMALL))
    optimizer: Any = module.configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.98), 1e-9, 0)
    # equation 3 at its peak: d_model ** -0.5 * warmup_steps ** -0.5 for the base model
    assert group["lr"] == pytest.approx(512**-0.5 * 4000**-0.5, rel=1e-12)
    assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_is_fused_on_the_cpu_and_stays_adam(kind: type[torch.optim.Adam]) -> None:
    arguments: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-9, "weight_decay": 0.1}
    plain, fused = (LitTransformer(Transformer(V, **SMALL), optimizer=lambda p: kind(p, **arguments)) for _ in range(2))
    fused.load_state_dict(plain.state_dict())
    optimizer: Any = fused.configure_optimizers()
    assert optimizer.param_groups[0]["fused"]
    assert not hasattr(optimizer, "_step_supports_amp_scaling")  # with it Lightning would refuse to clip in float16
    reference = kind(plain.parameters(), **arguments)
    for seed in range(5):
        for module, rule in ((plain, reference), (fused, optimizer)):
            draw = torch.Generator().manual_seed(seed)
            for parameter in module.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            rule.step()
    for expected, found in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("choice", [{"foreach": True}, {"foreach": False}, {"fused": False}, {"capturable": True}])
def test_an_optimizer_with_a_way_of_its_own_keeps_it(choice: dict[str, bool]) -> None:
    module = LitTransformer(Transformer(V, **SMALL), optimizer=lambda p: torch.optim.Adam(p, **choice))
    optimizer: Any = module.configure_optimizers()
    assert not optimizer.param_groups[0]["fused"]


def test_another_optimizer() -> None:
    module = LitTransformer(Transformer(V, **SMALL), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    assert isinstance(module.configure_optimizers(), torch.optim.SGD)


# Checkpoints


class PlainArguments(LitTransformer):
    """Adds an argument of its own to those of LitTransformer."""

    def __init__(self, network: TranslationNetwork, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        self.temperature = temperature


class BuildsItsOwn(LitTransformer):
    """Takes sizes instead of a network."""

    def __init__(self, width: int = 8, names: list[str] | None = None) -> None:
        super().__init__(Transformer(V, **{**SMALL, "d_model": width}), label_smoothing=0.3)
        self.width, self.names = width, names


class RemembersAll(LitTransformer):
    """Keeps its arguments as Lightning's documentation does, live objects too."""

    def __init__(self, network: TranslationNetwork, temperature: float = 1.0) -> None:
        super().__init__(network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.save_hyperparameters()
        self.temperature = temperature


class RemembersAllButTheNetwork(LitTransformer):
    """Keeps its arguments as Lightning advises for modules."""

    def __init__(self, network: TranslationNetwork, temperature: float = 1.0) -> None:
        super().__init__(network)
        self.save_hyperparameters(ignore=["network"])
        self.temperature = temperature


class OfADict(LitTransformer):
    """Takes its settings as one dict, which it keeps as Lightning's documentation does."""

    def __init__(self, conf: dict[str, Any]) -> None:
        super().__init__(Transformer(V, **conf["sizes"]), label_smoothing=conf["smoothing"])
        self.save_hyperparameters(conf)


class CustomNetwork(Transformer):
    """A network class of its own, with an argument that Transformer does not have."""

    def __init__(self, vocab_size: int, twist: float = 1.0, **kwargs: Any) -> None:
        super().__init__(vocab_size, **kwargs)
        self.twist = twist

    def project(self, features: Tensor) -> Tensor:
        return super().project(features) * self.twist


def save(module: L.LightningModule, path: Path) -> dict[str, Any]:
    """Trains for a step and saves; the content as a cautious reader sees it."""
    fit(module, [make_batch(make_pairs(3))], max_steps=1, max_epochs=-1).save_checkpoint(path)
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def assert_same(one: LitTransformer, other: LitTransformer) -> None:
    assert type(one) is type(other)
    assert type(one.network) is type(other.network)
    assert one.network.spec["class_path"] == other.network.spec["class_path"]
    assert one.network.init_args.items() <= other.network.init_args.items()  # defaults may be added
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    batch = make_batch(make_pairs(4))
    one.eval()
    other.eval()
    torch.testing.assert_close(one(batch.src, batch.tgt_input), other(batch.src, batch.tgt_input), rtol=0, atol=0)
    torch.testing.assert_close(one.compute_loss(batch), other.compute_loss(batch), rtol=0, atol=0)


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize(
    "module",
    [
        LitTransformer(Transformer(V, **SMALL), label_smoothing=0.3),
        LitTransformer(CustomNetwork(V, twist=0.25, **SMALL)),
        LitTransformer(Transformer(V, tie="none", norm="pre", positions="learned", max_length=40, **SMALL)),
        PlainArguments(Transformer(V, **SMALL), temperature=2.5, label_smoothing=0.3),
        BuildsItsOwn(width=32, names=["a", "b"]),
        RemembersAll(Transformer(V, **SMALL), temperature=2.5),
        RemembersAllButTheNetwork(Transformer(V, **SMALL), temperature=2.5),
        OfADict({"sizes": SMALL, "smoothing": 0.2}),
    ],
    ids=["plain", "network", "learned", "subclass", "owner", "all", "but_network", "dict"],
)
def test_built_by_hand_it_loads_by_itself(tmp_path: Path, module: LitTransformer) -> None:
    content = save(module, tmp_path / "x.ckpt")
    assert is_plain(content["hyper_parameters"])
    for options in ({}, {"weights_only": True}):
        loaded = type(module).load_from_checkpoint(tmp_path / "x.ckpt", **options)
        assert_same(module, loaded)
        for name in ("label_smoothing", "temperature", "width", "names"):
            assert getattr(loaded, name, None) == getattr(module, name, None)


def test_live_objects_stay_out_of_checkpoints(tmp_path: Path) -> None:
    module = LitTransformer(
        Transformer(V, **SMALL),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        search=GreedySearch(),
        criterion=Margin(),
    )
    content = save(module, tmp_path / "x.ckpt")
    assert is_plain(content["hyper_parameters"])
    assert not {"optimizer", "search", "criterion"} & content["hyper_parameters"].keys()
    loaded = LitTransformer.load_from_checkpoint(tmp_path / "x.ckpt", criterion=Margin())
    assert_same(module, loaded)


def test_built_by_the_command_line_it_loads_too(tiny_run: Path, tmp_path: Path) -> None:
    path = tiny_run / "checkpoints" / "step=150.ckpt"
    content = torch.load(path, weights_only=True)
    assert is_plain(content["hyper_parameters"])
    module = LitTransformer.load_from_checkpoint(path)
    own = {name: value for name, value in content["state_dict"].items()}
    torch.testing.assert_close(module.state_dict(), own, rtol=0, atol=0)
    optimizer: Any = module.configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.008  # what the run was configured with
    by_hand = save(LitTransformer(module.network), tmp_path / "by_hand.ckpt")
    for key in ("network", "label_smoothing", "_instantiator"):
        assert by_hand["hyper_parameters"][key] == content["hyper_parameters"][key]


def test_a_network_with_live_arguments_is_not_described(tmp_path: Path) -> None:
    class Wrapped(Transformer):
        def __init__(self, part: nn.Module) -> None:
            super().__init__(V, **SMALL)
            self.part = part

    module = LitTransformer(Wrapped(nn.Linear(2, 2)))
    with (
        pytest.warns(UserWarning, match="argument part of Wrapped is no plain data .Linear., so checkpoints cannot"),
        pytest.warns(UserWarning, match="the network's class .*Wrapped was defined in a script, where nobody else"),
    ):
        content = save(module, tmp_path / "x.ckpt")
    assert "network" not in content["hyper_parameters"]


# Translating


@pytest.mark.parametrize("training", [True, False])
def test_generate_leaves_every_mode_as_it_was(training: bool) -> None:
    module = LitTransformer(Transformer(V, **{**SMALL, "dropout": 0.5}))
    module.train(training)
    module.network.encoder.eval()  # frozen by hand
    before = [part.training for part in module.modules()]
    src = make_batch(make_pairs(3)).src
    first = module.generate(src)
    assert [part.training for part in module.modules()] == before
    assert first == module.generate(src)  # without dropout
    module.network.eval()
    with torch.no_grad():
        assert first == BeamSearch()(module.network, src)


def test_generate_leaves_modes_as_they_were_after_an_error() -> None:
    module = LitTransformer(Transformer(V, **SMALL)).train()
    with pytest.raises(ValueError, match="nothing but padding"):
        module.generate(torch.zeros(1, 3, dtype=torch.long))
    assert all(part.training for part in module.network.modules())


class Seen(GreedySearch):
    """Notes which networks it is given."""

    def __init__(self) -> None:
        super().__init__(5)
        self.networks: list[TranslationNetwork] = []

    def __call__(self, network: TranslationNetwork, src: Tensor) -> Any:
        self.networks.append(network)
        return super().__call__(network, src)


class Generates(L.Callback):
    """Translates each batch of an evaluation."""

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.generate(batch.src)


def test_generate_decodes_with_a_prepared_copy_of_the_weights_of_the_moment() -> None:
    network, search = Transformer(V, **SMALL), Seen()
    module, src = LitTransformer(network, search=search), make_batch(make_pairs(6)).src
    names = list(module.state_dict())
    for _ in range(2):
        found = module.generate(src)
        assert isinstance(search.networks[-1], PreparedTransformer)
        with torch.inference_mode():
            expected = GreedySearch(5)(copy.deepcopy(network).eval(), src)
        for (ours,), (theirs,) in zip(found, expected, strict=True):
            assert ours.tokens == theirs.tokens
            assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-4)
        for parameter in network.parameters():
            parameter.data.mul_(-1.3)  # leaves no trace that autograd would see
    assert list(module.state_dict()) == names


def test_an_evaluation_prepares_the_network_once_and_lets_it_go() -> None:
    search, batch = Seen(), make_batch(make_pairs(6))
    module = LitTransformer(Transformer(V, **SMALL), search=search)
    trainer = make_trainer(Generates(), max_epochs=3, check_val_every_n_epoch=1)
    trainer.fit(module, loader([batch]), loader([batch, batch]))
    numbers = [[id(one) for one in search.networks].index(id(one)) for one in search.networks]
    assert numbers == [0, 0, 2, 2, 4, 4]  # anew after each training step
    assert module._prepared == []


class BreaksOff(L.Callback):
    """Ends a validation in its middle."""

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.generate(batch.src)
        raise RuntimeError("broken off")


class GeneratesInTraining(L.Callback):
    """Translates each batch of training."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.generate(batch.src)


def test_after_an_evaluation_that_was_broken_off_weights_are_not_stale() -> None:
    search, batch = Seen(), make_batch(make_pairs(6))
    module = LitTransformer(Transformer(V, **SMALL), search=search)
    with pytest.raises(RuntimeError, match="broken off"):
        make_trainer(BreaksOff()).validate(module, loader([batch]), verbose=False)
    module.train()
    make_trainer(GeneratesInTraining(), max_epochs=1).fit(module, loader([batch, batch]))
    assert [id(one) for one in search.networks].count(id(search.networks[-1])) == 1  # anew after each step
    assert len({id(one) for one in search.networks}) == 3


def test_generate_follows_the_precision_of_the_trainer() -> None:
    search, batch = Seen(), make_batch(make_pairs(6))
    module = LitTransformer(Transformer(V, **SMALL), search=search)
    for precision in ("bf16-mixed", "32-true", "bf16-true", "64-true"):
        make_trainer(precision=precision).predict(module, loader([batch]))
    assert [getattr(one, "_dtype", None) for one in search.networks] == [
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
        None,
    ]


def test_training_goes_on_after_generate() -> None:
    module = LitTransformer(Transformer(V, **SMALL))
    module.generate(torch.randint(4, V, (2, 300)), search=GreedySearch(max_extra_length=1))  # positions never seen
    loss, _ = module.compute_loss(make_batch(make_pairs(3)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_predict_and_the_module_s_own_search() -> None:
    module = LitTransformer(Transformer(V, **SMALL), search=BeamSearch(beam_size=3, n_best=3))
    batches = [make_batch(make_pairs(2)), make_batch(make_pairs(3))]
    found = make_trainer().predict(module, loader(batches))
    assert found is not None
    assert [len(sentences) for sentences in found] == [2, 3]
    assert all(len(hypotheses) == 3 for sentences in found for hypotheses in sentences)
    assert found[1] == BeamSearch(beam_size=3, n_best=3)(module.network.eval(), batches[1].src)


# Learning


def test_bfloat16_trains_and_validates() -> None:
    module = LitTransformer(Transformer(V, **SMALL), optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    batch = make_batch(make_pairs(8))
    before = module.compute_loss(batch).loss.item()
    trainer = make_trainer(max_steps=30, max_epochs=-1, precision="bf16-mixed")
    trainer.fit(module, loader([batch]), loader([batch]))
    metrics = trainer.callback_metrics
    assert metrics["train/loss"] < 0.7 * before
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    with torch.no_grad():
        exact = module.compute_loss(batch).loss.item()
    (found,) = make_trainer(precision="bf16-mixed").validate(module, loader([batch]), verbose=False)
    assert found["val/loss"] == pytest.approx(exact, rel=0.02)  # bfloat16 keeps two to three digits
    assert module.generate(batch.src)


class Endless(torch.utils.data.IterableDataset[TranslationBatch]):
    """Numbers of digits, to be written in reverse."""

    def __iter__(self) -> Iterator[TranslationBatch]:
        draw = random.Random(1)
        while True:
            numbers = [[draw.randrange(4, 14) for _ in range(draw.randint(1, 8))] for _ in range(64)]
            yield make_batch([(digits, digits[::-1]) for digits in numbers])


@pytest.mark.slow
def test_it_learns_to_reverse_digits() -> None:
    sizes: dict[str, Any] = {**SMALL, "num_layers": 2, "d_model": 64, "d_ff": 128, "num_heads": 4}
    module = LitTransformer(Transformer(14, **sizes), optimizer=lambda p: torch.optim.Adam(p, lr=0.002))
    fit(module, DataLoader(Endless(), batch_size=None), max_steps=1200, max_epochs=-1)
    draw = random.Random(2)
    numbers = [[draw.randrange(4, 14) for _ in range(draw.randint(1, 8))] for _ in range(200)]
    found = module.generate(make_batch([(digits, []) for digits in numbers]).src)
    right = Counter(best[0].tokens == digits[::-1] for best, digits in zip(found, numbers, strict=True))
    assert right[True] / 200 > 0.95


PAIRS = [
    ("I love cats", "나는 고양이를 좋아해"),
    ("I love dogs", "나는 강아지를 좋아해"),
    ("she sees the cat", "그녀는 고양이를 봐"),
    ("he sees the dog", "그는 강아지를 봐"),
    ("we drink water", "우리는 물을 마셔"),
    ("they drink tea", "그들은 차를 마셔"),
    ("I read a book", "나는 책을 읽어"),
    ("she reads two books", "그녀는 책 두 권을 읽어"),
    ("he is tall", "그는 키가 커"),
    ("the house is big", "집이 커"),
    ("the apple is small", "사과가 작아"),
    ("it is raining", "비가 와"),
    ("did you eat?", "밥 먹었어?"),
    ("I did not eat", "나는 안 먹었어"),
    ("see you tomorrow", "내일 봐"),
    ("good morning", "좋은 아침이야"),
    ("thank you very much", "정말 고마워"),
    ("where is the school?", "학교가 어디야?"),
    ("I go to school", "나는 학교에 가"),
    ("we went to the sea", "우리는 바다에 갔어"),
]


def test_it_learns_twenty_sentences_by_heart() -> None:
    from lit_transformer.data import SubwordTokenizer
    from lit_transformer.translator import Translator

    tokenizer = SubwordTokenizer(vocab_size=400)
    tokenizer.train([SentencePair(*pair) for pair in PAIRS])
    src = tokenizer.encode_src([src for src, _ in PAIRS])
    tgt = tokenizer.encode_tgt([tgt for _, tgt in PAIRS])
    batch = TranslationBatch(padded(src), padded(tgt))
    sizes = {**SMALL, "d_model": 64, "d_ff": 128, "num_heads": 4}
    module = LitTransformer(Transformer(400, **sizes), optimizer=lambda p: torch.optim.Adam(p, lr=0.003))
    fit(module, [batch], max_steps=150, max_epochs=-1)
    bleu = CorpusBLEU()
    bleu.update(Translator(module.network, tokenizer)([src for src, _ in PAIRS]), [tgt for _, tgt in PAIRS])
    assert bleu.compute() > 95


@pytest.mark.parametrize(("ours", "name"), [({"vocab_size": 500}, "vocab_size=500"), ({"vocab_size": 700}, "=700")])
def test_a_network_of_another_vocabulary_than_the_data_is_refused(
    ours: dict[str, int], name: str, own_folder: None
) -> None:
    corpus = TeachingCorpus("validation", max_rows=50)
    data = TranslationDataModule(train=corpus, val=corpus, vocab_size=600, max_tokens=512)
    network = Transformer(num_layers=1, d_model=8, d_ff=16, num_heads=2, **ours)
    trainer = L.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(InputError, match=rf"the network has .*{name}, but the tokenizer of the data 600"):
        trainer.fit(LitTransformer(network), data)


def test_a_network_that_is_too_short_for_the_data_is_refused(own_folder: None) -> None:
    corpus = TeachingCorpus("validation", max_rows=50)
    data = TranslationDataModule(train=corpus, val=corpus, vocab_size=600, max_tokens=512)
    network = Transformer(600, num_layers=1, d_model=8, d_ff=16, num_heads=2, positions="learned", max_length=100)
    with pytest.raises(InputError, match=r"network.max_length=100 has no room for sentences of data.max_length=256"):
        make_trainer(max_steps=1).fit(LitTransformer(network), data)


def test_means_in_half_precision_count_all_tokens() -> None:
    module = LitTransformer(Transformer(V, **SMALL)).to(torch.bfloat16)
    for _ in range(1000):
        module.val_loss.update(torch.tensor(3.0, dtype=torch.bfloat16), torch.tensor(1001))
    assert module.val_loss.num_tokens == 1_001_000
    assert module.val_loss.compute() == 3
    module.val_loss.reset()
    assert module.val_loss.total.dtype == torch.float32
    assert module.to(torch.float64).val_loss.total.dtype == torch.float64


def test_one_loss_that_is_no_number_spoils_the_mean() -> None:
    class Diverged(LitTransformer):
        def compute_loss(self, batch: TranslationBatch) -> Any:
            found = super().compute_loss(batch)
            return found._replace(loss=found.loss * (math.nan if len(batch) == 1 else 1))

    batches = [make_batch(make_pairs(count)) for count in (3, 1, 4)]
    module = Diverged(Transformer(V, **SMALL))
    (result,) = make_trainer().validate(module, loader(batches), verbose=False)
    assert math.isnan(result["val/loss"])
    assert result["val/perplexity"] > 1
    (result,) = make_trainer().validate(module, loader(batches[::2]), verbose=False)
    assert result["val/loss"] > 0


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_can_be_skipped() -> None:
    class Picky(LitTransformer):
        def training_step(self, batch: TranslationBatch, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    module = Picky(Transformer(V, **SMALL))
    trainer = fit(module, [make_batch(make_pairs(count)) for count in (2, 3, 4)], max_epochs=1)
    assert trainer.fit_loop.total_batch_idx == 2
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_in_mixed_precision_a_search_casts_each_weight_once() -> None:
    """Counts copies to another type; a network with a hook is not prepared for searches, which does without them."""
    module, src = LitTransformer(Transformer(V, **SMALL)), torch.tensor([[5, 6, 3]])
    with_hook(module.network)
    counts = []
    for length in (2, 20):
        search = GreedySearch(max_extra_length=length)
        with torch.profiler.profile() as profile, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            found = module.generate(src, search)[0][0]
        assert len(found.tokens) == length + 2
        counts.append(sum(one.count for one in profile.key_averages() if one.key == "aten::_to_copy"))
    assert counts[1] - counts[0] < 18 * (9 + 8)  # weights and biases that a step reads, were they cast in each
