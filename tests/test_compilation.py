"""Networks compiled for training by torch.compile: layer by layer, as the module does it, or as a whole."""

import os
import shutil
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from compiled_run import SHAPES, SIZES, batches
from torch import Tensor, nn
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils.data import DataLoader

from lit_transformer import LitTransformer, Transformer, TranslationNetwork
from lit_transformer.interfaces import InputError
from lit_transformer.nn.layer_compilation import explaining_compilation


def check_same(
    folder: Path, kind: str, precision: str, backend: str, tolerance: float, *options: str
) -> dict[str, Any]:
    script, output = Path(__file__).with_name("compiled_run.py"), folder / "result.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    call = [sys.executable, str(script), kind, precision, backend, str(output), *options]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = torch.load(output, weights_only=True)
    expected, found = result["expected"], result["found"]
    assert list(found) == list(expected)  # checkpoints have the same names
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)
    return result


def test_compiled_layers_learn_the_same(tmp_path: Path) -> None:
    result = check_same(tmp_path, "LitTransformer", "64-true", "eager", 1e-9)
    # at most one graph for the layers of each side, in training and in validation, whatever the shapes of batches
    assert 0 < result["graphs"] <= 4
    assert result["breaks"] == 0
    assert result["chunked"] == 2 * len(SHAPES)
    assert result["compiled_after_fit"] == 0
    # what was compiled takes no notice of new hooks
    assert len(result["maps"]) == 3 * SIZES["num_layers"] + 1
    for found, expected in zip(result["maps"], result["expected_maps"], strict=True):
        torch.testing.assert_close(found, expected)


def test_compiled_and_checkpointed_layers_learn_the_same(tmp_path: Path) -> None:
    check_same(tmp_path, "LitTransformer", "64-true", "eager", 1e-9, "checkpointed")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    ("kind", "precision", "tolerance"),
    [
        ("LitTransformer", "32-true", 1e-4),
        ("RDropTransformer", "32-true", 1e-4),
        ("LitTransformer", "bf16-mixed", 0.03),
    ],
)
def test_compiled_layers_learn_the_same_with_the_real_compiler(
    tmp_path: Path, kind: str, precision: str, tolerance: float
) -> None:
    check_same(tmp_path, kind, precision, "inductor", tolerance)


class Whole(TranslationNetwork):
    """A network that does not name its layers."""

    vocab_size = 24

    def forward(self, src: Tensor, tgt_input: Tensor) -> Tensor: ...
    def start(self, src: Tensor) -> Any: ...
    def step(self, tokens: Tensor, state: Any) -> Any: ...


class Layer(nn.Linear):
    """Its own class, since torch does not compile a layer of torch alone; the test suite puts no checks around it."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).relu()


class OneLayer(Whole):
    """A network that names its one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(24, 8), Layer(8, 24)

    def forward(self, src: Tensor, tgt_input: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.embedding(tgt_input))
        return logits

    def sharded_parts(self) -> list[nn.Module]:
        return [self.layer]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler looks at
@pytest.mark.parametrize("num_sanity_val_steps", [0, 1])
def test_a_compiler_that_fails_is_explained(num_sanity_val_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any) -> Any:
        raise InvalidCxxCompiler("g++")

    compiles: Any = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", partialmethod(compiles, backend=no_compiler))
    module = LitTransformer(OneLayer(), compile_layers=True)
    loader: Any = DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=1, num_sanity_val_steps=num_sanity_val_steps, **quiet)
    reason = r"torch\.compile failed \(InvalidCxxCompiler: Compiler: g\+\+ is not found\)"
    expected = rf"^model\.compile_layers is on, but {reason}: install .* or leave model\.compile_layers out$"
    with pytest.raises(InputError, match=expected):
        trainer.fit(module, loader, loader)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="another"), explaining_compilation():
        raise RuntimeError("another")


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile_layers needs a network .* sharded_parts of Whole is empty"):
        LitTransformer(Whole(), compile_layers=True)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_network_that_is_compiled_as_a_whole_is_told(is_wrapped: bool) -> None:
    network: Any = Transformer(**SIZES)
    if is_wrapped:
        network = torch.compile(network, backend="eager")
    else:
        network.compile(backend="eager")
    module = LitTransformer(network)
    module._trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
    with pytest.warns(UserWarning, match="compiled as a whole") as caught:
        module.on_fit_start()
    (message,) = (str(one.message) for one in caught if "compiled as a whole" in str(one.message))
    assert "training keeps the logits of all tokens" in message
    assert "take LitTransformer(network, compile_layers=True) instead" in message
    has_other_names = not set(module.state_dict()) <= set(LitTransformer(Transformer(**SIZES)).state_dict())
    assert ("other names in checkpoints, so that a resume needs the wrapper too" in message) == has_other_names
    assert has_other_names == is_wrapped
    assert not any("cannot read" in str(one.message) for one in caught)
