"""Divided weights in a group of one process; tests/test_processes.py has two."""

from pathlib import Path

import pytest
import torch
from command_line import lit, tiny_project
from torch import distributed

from lit_transformer import BeamSearch, LitTransformer, Transformer
from lit_transformer.interfaces import TranslationBatch
from lit_transformer.sharding import ShardedWeights, is_sharded, load_whole_weights

SIZES = {"vocab_size": 24, "num_layers": 2, "d_model": 16, "d_ff": 32, "num_heads": 2, "dropout": 0.0}
BATCH = TranslationBatch(torch.tensor([[5, 6, 7, 3], [8, 3, 0, 0]]), torch.tensor([[2, 9, 10, 3], [2, 11, 3, 0]]))


@pytest.fixture(autouse=True)
def _group(tmp_path: Path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def make(**options: bool) -> LitTransformer:
    torch.manual_seed(5)
    return LitTransformer(Transformer(**SIZES), **options)


def sharded(**options: bool) -> LitTransformer:
    module = make(**options)
    module._sharded = ShardedWeights(module.network, "cpu", 1)
    return module


def gradients(module: LitTransformer) -> dict[str, torch.Tensor]:
    module.zero_grad()
    module.compute_loss(BATCH).loss.backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {name: getattr(grad, "full_tensor", lambda grad=grad: grad)() for name, grad in found.items()}


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_gradients_are_those_of_the_whole_network(is_checkpointed: bool) -> None:
    expected, found = gradients(make()), gradients(sharded(activation_checkpointing=is_checkpointed))
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_processes_meet_only_to_gather_and_training_goes_on(mode, monkeypatch: pytest.MonkeyPatch) -> None:
    module, expected = sharded(), make().generate(BATCH.src, BeamSearch(3))
    with mode():
        module.on_validation_start()
        assert not is_sharded(module)
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce", "broadcast", "barrier"):
            monkeypatch.setattr(distributed, name, None)  # each call would fail
        module.compute_loss(BATCH)
        assert module.generate(BATCH.src, BeamSearch(3)) == expected
        monkeypatch.undo()
        module.on_validation_end()
    assert is_sharded(module)
    assert all(grad.abs().sum() > 0 for name, grad in gradients(module).items() if "keys" not in name)


def test_generate_gathers_by_itself() -> None:
    module = sharded()
    assert module.generate(BATCH.src) == make().generate(BATCH.src)
    assert is_sharded(module)


def test_checkpoints_that_no_command_reads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    strategy = '--trainer.strategy={"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}'
    finished = lit("fit", "--config", tiny_project(tmp_path), strategy)
    assert finished.status == 1
    assert "set its save_distributed_checkpoint to false" in finished.err.splitlines()[-1]
    assert "Traceback" not in finished.err


def test_whole_weights_are_loaded_in_parts() -> None:
    other = {name: tensor + 1 for name, tensor in make().state_dict().items()}
    module = sharded()
    load_whole_weights(module, other)
    assert all(torch.equal(tensor.full_tensor(), other[name]) for name, tensor in module.state_dict().items())
