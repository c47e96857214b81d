"""One update for one set of sentences, however it is cut into micro-batches and processes."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_transformer import LitTransformer, Transformer
from lit_transformer.interfaces import TranslationBatch

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")

SIZES = {"vocab_size": 24, "num_layers": 1, "d_model": 16, "d_ff": 32, "num_heads": 2, "dropout": 0.0}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9),
    # a larger epsilon than the paper's: the bias of the keys has gradient 0, and Adam would blow its rounding errors up
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.003, betas=(0.9, 0.98), eps=1e-4),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in one order: what is compared here differs by nothing else."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sentences(count: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of very different lengths, so that equal weight for batches and for tokens are far apart."""
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 14, (count, 2), generator=draw).tolist()
    words = [[torch.randint(4, 24, (n,), generator=draw).tolist() for n in pair] for pair in lengths]
    return [([*src, 3], [2, *tgt, 3]) for src, tgt in words]


def pad(rows: list[list[int]]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def batch(pairs: list[tuple[list[int], list[int]]]) -> TranslationBatch:
    if not pairs:  # what a process trains on when there is nothing left for it
        return TranslationBatch(pad([[5, 3]]), pad([[0, 0, 0]]))
    return TranslationBatch(pad([src for src, _ in pairs]), pad([tgt for _, tgt in pairs]))


class Steps:
    """The micro-batches of one process: step ``t`` trains on sentences ``12 t`` to ``12 t + 11``."""

    def __init__(self, cuts: list[int], rank: int = 0, world: int = 1, steps: int = 4) -> None:
        self.cuts, self.rank, self.world, self.steps = cuts, rank, world, steps

    def __iter__(self):
        pairs = sentences(12 * self.steps)
        for step in range(self.steps):
            edges = [0, *self.cuts, 12]
            parts = [pairs[12 * step + a : 12 * step + b] for a, b in itertools.pairwise(edges)]
            yield from map(batch, parts[self.rank :: self.world])

    def __len__(self) -> int:
        return self.steps * (len(self.cuts) + 1) // self.world


def train(module: L.LightningModule, loader: Steps, **settings) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    base = {"max_epochs": 1, "devices": 1, "log_every_n_steps": 1}
    trainer = L.Trainer(**{"enable_checkpointing": False, **base, **quiet, **settings})
    trainer.fit(module, loader)
    return trainer


def make(optimizer: str = "sgd", **settings) -> LitTransformer:
    torch.manual_seed(4)  # no input of a ReLU comes near 0 here, where a rounding would change its gradient from 0 to 1
    return LitTransformer(Transformer(**SIZES), optimizer=OPTIMIZERS[optimizer], **settings)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def by_hand(optimizer: str, smoothing: float = 0.1, clip: float | None = None) -> tuple[Tensor, list[float]]:
    """The reference: plain torch, all sentences of a step in one batch."""
    network = make().network.train()
    rule, losses = OPTIMIZERS[optimizer](network.parameters()), []
    for whole in Steps([]):
        logits = network(whole.src, whole.tgt_input).flatten(0, 1)
        loss = F.cross_entropy(logits, whole.labels.flatten(), ignore_index=0, label_smoothing=smoothing)
        rule.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        rule.step()
        losses.append(loss.item())
    return weights(network), losses


class Losses(L.Callback):
    """Notes what is logged at the end of each optimizer step."""

    def __init__(self) -> None:
        self.logged: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(self.logged) < trainer.global_step:
            self.logged.append(float(trainer.callback_metrics["train/loss"]))


CUTS = [[], [1], [5, 6, 11], [2, 3, 4, 9, 10], [0, 7, 12]]  # the last has two empty micro-batches


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_any_cut_into_micro_batches_gives_the_same_weights(optimizer, cuts):
    module, losses = make(optimizer), Losses()
    train(module, Steps(cuts), accumulate_grad_batches=len(cuts) + 1, callbacks=[losses])
    expected, expected_losses = by_hand(optimizer)
    assert torch.allclose(weights(module), expected, atol=3e-5)
    assert losses.logged == pytest.approx(expected_losses, rel=1e-5)


def test_equal_weight_for_micro_batches_would_be_seen():
    module = make()
    module.on_train_batch_start = lambda batch, batch_idx: None  # leaves every micro-batch the same weight
    train(module, Steps([1, 2, 3]), accumulate_grad_batches=4)
    assert not torch.allclose(weights(module), by_hand("sgd")[0], atol=1e-3)


@pytest.mark.parametrize("cuts", CUTS[:3], ids=str)
def test_a_criterion_that_gives_a_mean_counts_by_tokens(cuts):
    module = make(criterion=nn.CrossEntropyLoss())
    train(module, Steps(cuts), accumulate_grad_batches=len(cuts) + 1)
    assert torch.allclose(weights(module), by_hand("sgd", smoothing=0)[0], atol=3e-5)


@pytest.mark.parametrize("cuts", CUTS[:3], ids=str)
def test_clipping_sees_the_whole_gradient(cuts):
    module = make()
    train(module, Steps(cuts), accumulate_grad_batches=len(cuts) + 1, gradient_clip_val=0.3)
    expected = by_hand("sgd", clip=0.3)[0]
    assert torch.allclose(weights(module), expected, atol=1e-4)
    assert not torch.allclose(expected, by_hand("sgd")[0], atol=1e-3)


def test_an_incomplete_last_group_is_a_step_of_its_own():
    class Short(Steps):
        def __iter__(self):
            return iter(list(super().__iter__())[: len(self)])

        def __len__(self) -> int:
            return 3 * 3 + 2  # the last step lacks sentences 7 to 11

    module = make()
    train(module, Short([4, 7]), accumulate_grad_batches=3)
    network = make().network.train()
    rule = OPTIMIZERS["sgd"](network.parameters())
    pairs = sentences(48)
    for chosen in (pairs[:12], pairs[12:24], pairs[24:36], pairs[36:43]):
        whole = batch(chosen)
        logits = network(whole.src, whole.tgt_input).flatten(0, 1)
        rule.zero_grad()
        F.cross_entropy(logits, whole.labels.flatten(), ignore_index=0, label_smoothing=0.1).backward()
        rule.step()
    assert torch.allclose(weights(module), weights(network), atol=3e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_half_precision_with_a_scaler_is_rescaled_after_unscaling(optimizer):
    from lightning.pytorch.plugins import MixedPrecision

    module = make(optimizer)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)  # the scaler alone is at stake
    train(module, Steps([1, 5]), accumulate_grad_batches=3, plugins=[plugin], gradient_clip_val=0.3)
    assert torch.allclose(weights(module), by_hand(optimizer, clip=0.3)[0], atol=3e-5)


RANKS = """
import json, sys, warnings
warnings.filterwarnings("ignore")
sys.path.insert(0, sys.argv[1])
import torch, lightning as L
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from test_gradient import Losses, Steps, make, train, weights

out, world, kind, optimizer = sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
torch.set_num_threads(1)

class Dealt(Steps):
    def __iter__(self):
        self.rank, self.world = torch.distributed.get_rank(), world
        return super().__iter__()

if kind == "ddp":
    strategy, module = DDPStrategy(process_group_backend="gloo"), make(optimizer)
else:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    strategy, module = ModelParallelStrategy(world, 1, process_group_backend="gloo"), make(optimizer)
    def configure_model():
        if not hasattr(module, "sharded"):
            module.sharded = fully_shard(module.network, mesh=module.device_mesh["data_parallel"])
            register_fsdp_forward_method(module.network, "features")
    module.configure_model = configure_model
losses = Losses()
trainer = train(module, Dealt([1, 5, 6], 0, world), strategy=strategy, devices=world, callbacks=[losses],
                accumulate_grad_batches=4 // world, use_distributed_sampler=False)
full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.parameters()]
flat = torch.cat([p.detach().flatten() for p in full])
if trainer.global_rank == 0:
    json.dump({"weights": flat.tolist(), "losses": losses.logged}, open(out, "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "kind", "optimizer"), [(2, "ddp", "sgd"), (4, "ddp", "sgd"), (2, "ddp", "adam"), (2, "fsdp2", "sgd")]
)
def test_processes_times_accumulation_gives_the_same_weights(tmp_path, world, kind, optimizer):
    script, out = tmp_path / "ranks.py", tmp_path / "out.json"
    script.write_text(RANKS)
    command = [sys.executable, script, Path(__file__).parent, out, str(world), kind, optimizer]
    finished = subprocess.run(command, timeout=600, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = json.loads(out.read_text())
    expected, losses = by_hand(optimizer)
    assert torch.allclose(torch.tensor(result["weights"]), expected, atol=3e-5)
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
