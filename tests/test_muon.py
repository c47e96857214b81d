"""MuonAdam beside torch's own Muon and Adam, beside the singular value decomposition, and in a training."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from command_line import TINY, lit, tiny_project
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from lit_transformer import LitTransformer, MuonAdam, Transformer
from lit_transformer.interfaces import InputError
from lit_transformer.muon import orthogonalized

SIZES: dict[str, Any] = {"num_layers": 1, "d_model": 16, "d_ff": 32, "num_heads": 2, "dropout": 0.0}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 24, 8), (2, 8, 40)])
def test_the_step_is_near_the_nearest_orthogonal_matrix(shape: tuple[int, ...]) -> None:
    """Which the singular value decomposition gives: the same directions, and all singular values near 1."""
    given = torch.randn(shape)
    u, _, vt = torch.linalg.svd(given, full_matrices=False)
    found = u.mT @ orthogonalized(given) @ vt.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(found, torch.diag_embed(values), atol=1e-4, rtol=0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon of its own")
@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 40)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_matrices_go_as_with_the_muon_of_torch(shape: tuple[int, int], weight_decay: float) -> None:
    """Which iterates in bfloat16, so that steps differ by a few hundredths of their size."""
    ours, theirs = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.empty(shape))
    theirs.data.copy_(ours.data)
    one = MuonAdam([ours], lr=0.02, weight_decay=weight_decay)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        before = ours.detach().clone()
        one.step()
        other.step()
        error = (ours - theirs).norm() / (ours - before).norm()
        assert error < 0.2
        theirs.data.copy_(ours.data)


def test_all_else_goes_as_with_adam() -> None:
    shapes = [(7,), (5, 4), (3, 2, 2)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(one.detach().clone()) for one in ours]
    settings: dict[str, Any] = {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-6}
    one, other = MuonAdam(ours, **settings), torch.optim.Adam(theirs, **settings)
    one.leave_to_adam([ours[1]])
    for _ in range(5):
        for mine, yours in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            yours.grad = mine.grad.clone()
        one.step()
        other.step()
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, yours)
        assert mine._version >= 5, "copies of the weights can tell that they are old"


@pytest.mark.parametrize("tie", ["all", "output", "none"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_a_module_leaves_tables_of_words_to_adam(tie: str, positions: str) -> None:
    network = Transformer(vocab_size=50, tie=tie, positions=positions, max_length=20, norm="post", **SIZES)
    optimizer: Any = LitTransformer(network, optimizer=MuonAdam).configure_optimizers()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for group in optimizer.param_groups:
        found[group["muon"]] |= {names[id(parameter)] for parameter in group["params"]}
    matrices = {name for name, one in network.named_parameters() if "layers" in name and one.ndim == 2}
    assert found[True] == matrices
    assert found[False] == set(names.values()) - matrices
    assert len(matrices) == 4 + 2 + 8 + 2


def test_groups_may_say_whose_they_are() -> None:
    one, two, three = (nn.Parameter(torch.zeros(4, 4)) for _ in range(3))
    optimizer = MuonAdam([{"params": [one], "muon": False, "lr": 0.5}, {"params": [two, three]}])
    kinds = [(group["muon"], len(group["params"]), group["lr"]) for group in optimizer.param_groups]
    assert kinds == [(False, 1, 0.5), (True, 2, 0.001)]
    optimizer.leave_to_adam([three])
    kinds = [(group["muon"], len(group["params"]), group["lr"]) for group in optimizer.param_groups]
    assert kinds == [(False, 1, 0.5), (True, 1, 0.001), (False, 1, 0.001)]
    with pytest.raises(ValueError, match=r"Muon is for matrices, and a parameter has the shape \(4,\)"):
        MuonAdam([{"params": [nn.Parameter(torch.zeros(4))], "muon": True}])


def test_names_of_parameters_stay_beside_them() -> None:
    network = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    optimizer = MuonAdam(network.named_parameters())
    optimizer.leave_to_adam([network[0].weight])
    assert [group["param_names"] for group in optimizer.param_groups] == [["1.weight"], ["1.bias"], ["0.weight"]]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 1]


def test_named_groups_of_matrices_or_of_vectors_alone() -> None:
    named = dict(nn.Linear(4, 4).named_parameters())
    groups = [{"params": [("weight", named["weight"])]}, {"params": [("bias", named["bias"])], "weight_decay": 0.1}]
    optimizer = MuonAdam(groups)
    kinds = [(group["muon"], group["param_names"], group["weight_decay"]) for group in optimizer.param_groups]
    assert kinds == [(True, ["weight"], 0.0), (False, ["bias"], 0.1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr must be 0 or more"),
        ({"scale": -1.0}, "scale must be 0 or more"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"betas": (0.9, 1.5)}, r"betas\[1\] must be at least 0 and below 1"),
        ({"num_iterations": 0}, "num_iterations must be at least 1"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MuonAdam([nn.Parameter(torch.zeros(2, 2))], **arguments)


def test_weights_in_parts_are_refused() -> None:
    class Part(torch.Tensor):
        """Stands for a weight that is divided over processes."""

    optimizer = MuonAdam([weight := nn.Parameter(torch.zeros(2, 2).as_subclass(Part))])
    weight.grad = torch.zeros(2, 2)
    with pytest.raises(InputError, match=r"MuonAdam needs whole weights: set trainer.strategy to ddp"):
        optimizer.step()


def test_a_run_learns_with_it_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_project(tmp_path)
    config = yaml.safe_load(TINY)
    config["model"]["optimizer"] = {"class_path": "lit_transformer.MuonAdam", "init_args": {"lr": 0.02}}
    (tmp_path / "muon.yaml").write_text(yaml.safe_dump(config))
    for options in (["--trainer.default_root_dir=whole"], ["--trainer.max_steps=4"], ["--ckpt_path=last"]):
        finished = lit("fit", "--config", "muon.yaml", *options)
        assert finished.status == 0, finished.err
    whole, broken = (
        torch.load(f"{name}/checkpoints/step=8.ckpt", weights_only=True)["state_dict"] for name in ("whole", "run")
    )
    assert all(torch.equal(tensor, broken[name]) for name, tensor in whole.items())
    with next(Path("whole/logs").rglob("metrics.csv")).open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[-1] < 0.9 * losses[0]


def test_weights_that_a_strategy_divides_are_refused_before_the_first_step() -> None:
    module = LitTransformer(Transformer(vocab_size=50, **SIZES), optimizer=MuonAdam)
    module.trainer = SimpleNamespace(strategy=FSDPStrategy())  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"MuonAdam needs whole weights: set trainer.strategy to ddp"):
        module.configure_optimizers()
