"""The chunked loss equals torch's on the full logits, in value and in gradients, however it is cut."""

import pytest
import torch
from torch import Tensor, nn

from lit_transformer import loss as loss_module
from lit_transformer.loss import smoothed_cross_entropy

V, D = 11, 6


def problem(n: int = 23, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weight and labels; both tensors are leaves that want a gradient."""
    features = torch.randn(n, D, dtype=dtype).mul_(2).requires_grad_()
    weight = torch.randn(V, D, dtype=dtype).requires_grad_()
    return features, weight, torch.randint(V, (n,))


def expected(features: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of torch's own criterion on all the logits."""
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)(features @ weight.T, labels)
    return loss, *torch.autograd.grad(loss, (features, weight))


def relative_error(found: Tensor, reference: Tensor) -> float:
    return ((found - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("rows", [1, 5, 22, 23, 1000])
def test_equals_cross_entropy_for_every_chunk_size(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, rows: int
) -> None:
    monkeypatch.setattr(loss_module, "_CPU_ROWS", 0)
    monkeypatch.setattr(loss_module, "_CPU_CHUNK", rows * V * 8)
    features, weight, labels = problem()
    found = smoothed_cross_entropy(features, weight, labels, smoothing)
    gradients = torch.autograd.grad(found.loss, (features, weight))
    for mine, reference in zip((found.loss, *gradients), expected(features, weight, labels, smoothing), strict=True):
        assert relative_error(mine, reference) < 1e-9
    assert relative_error(found.nll, nn.functional.cross_entropy(features @ weight.T, labels)) < 1e-9
    assert not found.nll.requires_grad


def test_a_vocabulary_larger_than_a_chunk_goes_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_CPU_ROWS", 0)
    monkeypatch.setattr(loss_module, "_CPU_CHUNK", V * 8 - 1)
    features, weight, labels = problem(3)
    reference = expected(features, weight, labels, 0.1)[0]
    assert relative_error(smoothed_cross_entropy(features, weight, labels, 0.1).loss, reference) < 1e-9


def test_scores_far_apart_stay_finite() -> None:
    features = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[500.0], [-500.0]], requires_grad=True)
    found = smoothed_cross_entropy(features, weight, torch.tensor([1, 1]), 0.1)
    found.loss.backward()
    assert found.nll.item() == pytest.approx((1000 + 0) / 2)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_backward_multiplies_by_what_comes_in_and_works_twice() -> None:
    features, weight, labels = problem()
    _, d_features, d_weight = expected(features, weight, labels, 0.1)
    found = smoothed_cross_entropy(features, weight, labels, 0.1).loss
    (3 * found).backward(retain_graph=True)
    found.backward()
    assert features.grad is not None
    assert weight.grad is not None
    assert relative_error(features.grad, 4 * d_features) < 1e-9
    assert relative_error(weight.grad, 4 * d_weight) < 1e-9


def test_two_losses_in_one_graph_add_up() -> None:
    features, weight, labels = problem()
    other, _, other_labels = problem(7)
    total = smoothed_cross_entropy(features, weight, labels, 0.1).loss * 2
    total = total + smoothed_cross_entropy(other, weight, other_labels).loss
    (found,) = torch.autograd.grad(total, weight)
    reference = 2 * expected(features, weight, labels, 0.1)[2] + expected(other, weight, other_labels, 0.0)[2]
    assert relative_error(found, reference) < 1e-9


def test_a_second_derivative_is_refused() -> None:
    features, weight, labels = problem()
    loss = smoothed_cross_entropy(features, weight, labels).loss
    (gradient,) = torch.autograd.grad(loss * loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("frozen", ["features", "weight"])
def test_only_one_side_wants_a_gradient(frozen: str) -> None:
    features, weight, labels = problem()
    reference = dict(zip(("features", "weight"), expected(features, weight, labels, 0.1)[1:], strict=True))
    leaves = {"features": features, "weight": weight}
    leaves[frozen].requires_grad_(False)
    smoothed_cross_entropy(features, weight, labels, 0.1).loss.backward()
    assert leaves.pop(frozen).grad is None
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert relative_error(leaf.grad, reference[name]) < 1e-9


def test_without_gradients_none_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    features, weight, labels = problem()
    reference = expected(features, weight, labels, 0.1)[0]
    monkeypatch.setattr(loss_module, "_add_product", None)  # calling it would fail
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = smoothed_cross_entropy(features, weight, labels, 0.1)
        assert relative_error(found.loss, reference) < 1e-9
        assert not found.loss.requires_grad
    with pytest.raises(TypeError, match="not callable"):
        smoothed_cross_entropy(features, weight, labels, 0.1)


def test_no_label_gives_zero_and_zero_gradients() -> None:
    features, weight, labels = problem(0)
    found = smoothed_cross_entropy(features, weight, labels, 0.1)
    found.loss.backward()
    assert (found.loss.item(), found.nll.item()) == (0.0, 0.0)
    assert features.grad is not None
    assert features.grad.shape == (0, D)
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros(V, D, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 300])
def test_under_autocast_it_is_as_close_as_torchs(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(loss_module, "_CPU_ROWS", 0)
    monkeypatch.setattr(loss_module, "_CPU_CHUNK", 64 * V * 2)
    features, weight, labels = problem(n, torch.float32)
    exact = expected(features.double(), weight.double(), labels, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = smoothed_cross_entropy(features, weight, labels, 0.1).loss
        loss = nn.CrossEntropyLoss(label_smoothing=0.1)(features @ weight.T, labels)
    assert found.dtype == torch.float32
    mine = (found, *torch.autograd.grad(found, (features, weight)))
    torchs = (loss, *torch.autograd.grad(loss, (features, weight)))
    for one, other, reference in zip(mine, torchs, exact, strict=True):
        assert one.dtype == torch.float32
        # bfloat16 keeps 8 bits, so either may be off by some 2**-8; neither is much worse than the other
        assert relative_error(one, reference) < max(2 * relative_error(other, reference), 2**-8)


def test_many_labels_do_not_vanish_in_float16() -> None:
    # With a mean over 100,000 tokens each token's gradient is below 1e-5 / V, where float16 has few digits or none.
    n = 100_000
    features = torch.randn(n, D).half().requires_grad_()
    weight = torch.randn(V, D).half().requires_grad_()
    labels = torch.randint(V, (n,))
    loss = smoothed_cross_entropy(features, weight, labels).loss
    d_features, _ = torch.autograd.grad(loss * 2.0**16, (features, weight))  # as a gradient scaler does
    reference = expected(features.double(), weight.double(), labels, 0.0)[1] * 2.0**16
    assert relative_error(d_features.double(), reference) < 2e-3  # float16 keeps 11 bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_many_labels_stay_in_float32_under_autocast(dtype: torch.dtype) -> None:
    n = 20_000
    features = torch.full((n, D), 0.5, requires_grad=True)
    weight, labels = torch.full((V, D), -2.0) + 0.01 * torch.arange(V)[:, None], torch.randint(V, (n,))
    exact = expected(features.double(), weight.double().requires_grad_(), labels, 0.1)[0]
    with torch.autocast("cpu", dtype):
        found = smoothed_cross_entropy(features, weight.requires_grad_(), labels, 0.1)
    assert found.loss.item() == pytest.approx(exact.item(), rel=2e-3)
