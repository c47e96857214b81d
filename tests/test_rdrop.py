"""R-Drop: the loss of its paper, computed by hand, in value, in gradients and over any cut into micro-batches."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from command_line import lit, tiny_project
from test_gradient import CUTS, OPTIMIZERS, SIZES, Losses, Steps, batch, sentences, train, weights
from torch import Tensor, nn
from torch.nn import functional as F

from lit_transformer import LitTransformer, RDropTransformer, Transformer, Translator
from lit_transformer import loss as loss_module
from lit_transformer.divergence import agreeing, symmetric_divergence
from lit_transformer.loss import smoothed_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
N, V, D = 13, 11, 6


def by_definition(logits: Tensor, others: Tensor) -> Tensor:
    """Half of the two divergences, token by token and word by word."""
    total = 0.0
    for p, q in zip(logits.softmax(-1).unbind(), others.softmax(-1).unbind(), strict=True):
        total = total + (p * (p / q).log()).sum() / 2 + (q * (q / p).log()).sum() / 2
    return torch.as_tensor(total / len(logits))


def problem() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    shapes = ((N, D), (N, D), (V, D))
    x, y, w = (torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes)
    return x, y, w


def test_the_divergence_is_that_of_the_definition_and_of_torch() -> None:
    x, y, w = problem()
    logits, others = x @ w.T, y @ w.T
    found = symmetric_divergence(logits, others)
    torch.testing.assert_close(found, by_definition(logits, others))
    both = (logits.log_softmax(-1), others.log_softmax(-1))
    theirs = [F.kl_div(q, p, log_target=True, reduction="batchmean") for p, q in (both, both[::-1])]
    torch.testing.assert_close(found, sum(theirs) / 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "part"), [(2, 2), (10, 4), (2 * N, 6), (200, 200)])
def test_both_passes_in_chunks_have_the_value_and_gradients_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, rows: int, part: int, smoothing: float
) -> None:
    monkeypatch.setattr(loss_module, "_CPU_ROWS", 0)
    monkeypatch.setattr(loss_module, "_CPU_CHUNK", rows * V * 8)
    monkeypatch.setattr(loss_module, "_CPU_SLICE", part * V)
    x, y, w = problem()
    labels = torch.randint(V, (N,)).repeat(2)

    def chunked(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return smoothed_cross_entropy(torch.cat((x, y)), w, labels, smoothing, 1.7).loss

    logits = torch.cat((x, y)) @ w.T
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing) + 1.7 * by_definition(*logits.chunk(2))
    found = chunked(x, y, w)
    torch.testing.assert_close(found, expected)
    gradients = zip(
        torch.autograd.grad(3 * found, (x, y, w)), torch.autograd.grad(3 * expected, (x, y, w)), strict=True
    )
    for mine, reference in gradients:
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(chunked, (x, y, w))


def test_no_token_is_no_loss_and_half_a_pair_is_refused() -> None:
    x, w = torch.zeros(0, D, requires_grad=True), torch.randn(V, D)
    for found in (smoothed_cross_entropy(x, w, torch.zeros(0).long(), agreement=2.0).loss, symmetric_divergence(x, x)):
        assert found.item() == 0
        found.backward()
    with pytest.raises(ValueError, match="an even number of rows, got 3"):
        smoothed_cross_entropy(torch.zeros(3, D), w, torch.zeros(3).long(), agreement=2.0)


def test_bfloat16_and_logits_far_apart_stay_finite() -> None:
    x, y, w = (tensor.detach().float().mul_(30).requires_grad_() for tensor in problem())
    with torch.autocast("cpu", torch.bfloat16):
        found = smoothed_cross_entropy(torch.cat((x, y)), w, torch.zeros(2 * N).long(), agreement=2.0).loss
    found.backward()
    assert found.dtype == torch.float32
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (x, y, w))


def test_autocast_leaves_the_divergence_in_full_precision() -> None:
    log_probs = torch.randn(8, 10_000).log_softmax(-1)
    expected, apart = agreeing(log_probs.clone(), 2.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = agreeing(log_probs.clone(), 2.5)
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], apart)


class TwoViews(Transformer):
    """Changes what it says in the second half of a batch, always in the same way: a dropout that can be repeated."""

    def features(self, src: Tensor, tgt_input: Tensor) -> Tensor:
        found = super().features(src, tgt_input)
        mask = torch.ones_like(found)
        if self.training:
            mask[len(found) // 2 :, :, ::3] = 0
        return found * mask


class ByLogits(RDropTransformer):
    """Takes the way through the logits, as networks of one's own do."""

    def forward(self, src: Tensor, tgt_input: Tensor) -> Tensor:
        return super().forward(src, tgt_input)


def make(kind: type[LitTransformer] = RDropTransformer, optimizer: str = "sgd", **settings) -> LitTransformer:
    torch.manual_seed(5)
    return kind(TwoViews(**SIZES), optimizer=OPTIMIZERS[optimizer], **settings)


def loss_by_hand(network: Transformer, whole, alpha: float) -> Tensor:
    """Equations 1 to 4 of the paper, halved: two cross-entropies and two divergences, per token."""
    both = torch.cat((whole.src, whole.src)), torch.cat((whole.tgt_input, whole.tgt_input))
    one, other = network.train()(*both).chunk(2)
    real = whole.labels != 0
    smoothed = [F.cross_entropy(each[real], whole.labels[real], label_smoothing=0.1) for each in (one, other)]
    return sum(smoothed) / 2 + alpha / 2 * by_definition(one[real], other[real])


@pytest.mark.parametrize("kind", [RDropTransformer, ByLogits])
def test_the_loss_is_that_of_the_paper(kind: type[LitTransformer]) -> None:
    module, whole = make(kind, alpha=3.0).double(), batch(sentences(9))
    expected = loss_by_hand(module.network, whole, 3.0)
    found = module.compute_loss(whole)
    torch.testing.assert_close(found.loss, expected)
    plain = loss_by_hand(module.network, whole, 0.0)
    assert expected > plain + 0.01
    parameters = list(module.parameters())
    for mine, reference in zip(
        torch.autograd.grad(found.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, reference)
    module.eval()
    torch.testing.assert_close(module.compute_loss(whole), LitTransformer.compute_loss(module, whole))
    assert module.compute_loss(whole).loss != found.loss


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_any_cut_into_micro_batches_gives_the_same_weights(cuts: list[int]) -> None:
    module, losses = make(alpha=2.0), Losses()
    train(module, Steps(cuts), accumulate_grad_batches=len(cuts) + 1, callbacks=[losses])
    network = make().network
    rule, expected = OPTIMIZERS["sgd"](network.parameters()), []
    for whole in Steps([]):
        rule.zero_grad()
        loss = loss_by_hand(network, whole, 2.0)
        loss.backward()
        rule.step()
        expected.append(loss.item())
    assert torch.allclose(weights(module), weights(network), atol=3e-5)
    assert losses.logged == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:the network's class .* was defined in a script")
def test_all_parts_of_a_step_pass_as_often() -> None:
    sizes: list[int] = []

    class Watched(TwoViews):
        def features(self, src: Tensor, tgt_input: Tensor) -> Tensor:
            sizes.append(len(src))
            return super().features(src, tgt_input)

    module = RDropTransformer(Watched(**SIZES), optimizer=OPTIMIZERS["sgd"], start_step=2)
    train(module, Steps([5]), accumulate_grad_batches=2)
    assert sizes == [5, 7, 5, 7, 10, 14, 10, 14]


def test_two_dropouts_differ_and_without_dropout_nothing_is_added() -> None:
    whole = batch(sentences(9))
    for dropout, differs in ((0.0, False), (0.4, True)):
        network = Transformer(**{**SIZES, "dropout": dropout})
        with_it, without = (RDropTransformer(network, alpha=alpha) for alpha in (5.0, 0.0))
        found = []
        for module in (with_it.train(), without.train()):
            torch.manual_seed(1)
            found.append(module.compute_loss(whole).loss.item())
        assert (found[0] > found[1] + 0.01) is differs
        assert differs or found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("name", ["alpha", "start_step"])
def test_negative_arguments_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1"):
        make(**{name: -1})


def test_it_begins_at_its_step_and_not_before() -> None:
    """Steps before are those of the plain module; the others are R-Drop's."""
    logged = {}
    for name, module in (
        ("never", make(LitTransformer)),
        ("at once", make(alpha=2.0)),
        ("at step 2", make(alpha=2.0, start_step=2)),
    ):
        losses = Losses()
        train(module, Steps([]), callbacks=[losses])
        logged[name] = losses.logged
    assert len(logged["never"]) > 3
    never, at_once, late = (torch.tensor(losses) for losses in logged.values())
    torch.testing.assert_close(late[:2], never[:2], rtol=1e-5, atol=0)
    assert (never[0] - at_once[0]).abs() > 0.01  # TwoViews hides a third of the second half's features
    network = make().network
    rule = OPTIMIZERS["sgd"](network.parameters())
    for step, whole in enumerate(Steps([])):
        if step == 3:
            break
        rule.zero_grad()
        plain = F.cross_entropy(
            network.train()(whole.src, whole.tgt_input).flatten(0, 1),
            whole.labels.flatten(),
            label_smoothing=0.1,
            ignore_index=0,
        )
        loss = plain if step < 2 else loss_by_hand(network, whole, 2.0)
        assert late[step].item() == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        rule.step()


def test_the_arguments_of_the_plain_module_are_its_own_too_by_place_and_by_name(tmp_path: Path) -> None:
    network = Transformer(**SIZES)
    by_place = RDropTransformer(network, 0.2, alpha=3.0)
    by_name = RDropTransformer(alpha=3.0, label_smoothing=0.2, network=network)
    assert by_place.hparams == by_name.hparams
    train(by_place, Steps([]), max_steps=1).save_checkpoint(tmp_path / "rdrop.ckpt")
    loaded = RDropTransformer.load_from_checkpoint(tmp_path / "rdrop.ckpt", weights_only=True)
    expected = {"network", "label_smoothing", "search", "criterion", "compile_layers", "activation_checkpointing"}
    expected |= {"alpha", "start_step"}
    for module in (by_place, by_name, loaded):
        assert (module.alpha, module.label_smoothing) == (3.0, 0.2)
        assert set(module.hparams) - {"_instantiator"} == expected
    with pytest.raises(TypeError, match="label_smothing"):
        RDropTransformer(network, label_smothing=0.2)


def test_help_shows_the_arguments_of_both_and_a_misspelt_one_is_refused() -> None:
    finished = lit("fit", "--model.help=lit_transformer.RDropTransformer")
    assert finished.status == 0, finished.err
    plain = set(inspect.signature(LitTransformer.__init__).parameters) - {"self"}
    shown = set(re.findall(r"^  --model\.(\w+) [A-Z{]", finished.out, re.M))
    assert shown == plain | {"alpha", "start_step"}
    assert "Probability taken from the right token" in " ".join(finished.out.split())
    wrong = lit("fit", "--model=lit_transformer.RDropTransformer", "--model.label_smothing=0.2")
    assert wrong.status == 2
    assert "'label_smothing' is not accepted. Did you mean 'label_smoothing'?" in wrong.err


def test_a_criterion_takes_the_place_of_the_cross_entropies() -> None:
    module, whole = make(criterion=nn.CrossEntropyLoss(), alpha=0.0), batch(sentences(5))
    smoothed = make(alpha=0.0).compute_loss(whole)
    assert module.compute_loss(whole).loss != smoothed.loss
    torch.testing.assert_close(module.compute_loss(whole).loss.detach(), smoothed.nll)


def test_a_configuration_names_it_and_its_checkpoint_serves_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_project(tmp_path)
    (tmp_path / "rdrop.yaml").write_text(
        "model: {class_path: lit_transformer.RDropTransformer, init_args: {alpha: 4.0}}"
    )
    finished = lit("fit", "--config", config, "--config=rdrop.yaml", "--trainer.max_steps=3")
    assert finished.status == 0, finished.err
    path = tmp_path / "run/checkpoints/step=3.ckpt"
    module = RDropTransformer.load_from_checkpoint(path, weights_only=True)
    assert (type(module), module.alpha) == (RDropTransformer, 4.0)
    assert lit("test", "--config=run/config.yaml", "--averaging.num_checkpoints=1").status == 0
    assert len(Translator.from_pretrained("run")(["one two"])) == 1
