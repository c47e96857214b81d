"""Training that keeps the output of each layer only: the same losses and gradients, less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_transformer import LitTransformer, RDropTransformer, Transformer, TranslationNetwork
from lit_transformer.interfaces import InputError, TranslationBatch
from lit_transformer.nn.encoder import Encoder, EncoderLayer
from lit_transformer.nn.packed import can_pack

BATCH = TranslationBatch(torch.tensor([[5, 6, 7, 3], [8, 3, 0, 0]]), torch.tensor([[2, 9, 10, 3], [2, 11, 3, 0]]))


def make(kind: type[LitTransformer], **options: Any) -> LitTransformer:
    torch.manual_seed(5)
    sizes = {"vocab_size": 24, "num_layers": 2, "d_model": 16, "d_ff": 32, "num_heads": 2}
    network = Transformer(**sizes, dropout=0.3, attention_dropout=0.2, activation_dropout=0.1)
    network.encoder.layers[0].register_forward_hook(lambda *_: None)  # so that both go the plain way
    return kind(network, **options).double()


def loss_and_gradients(module: LitTransformer) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(6)
    loss = module.compute_loss(BATCH).loss
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in module.named_parameters() if one.grad is not None}


class Made(TorchDispatchMode):
    """The memory of all tensors made while it is on; hooks for what is kept would hide one another."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def kept_bytes(self) -> int:
        """What of it is still there."""
        return sum(num_bytes for storage, num_bytes in self.storages.values() if not storage.expired())


def kept_bytes(precision: torch.dtype, **options: Any) -> int:
    """The memory that waits for the gradients of the layers."""
    module = make(LitTransformer, **options).float()
    batch = TranslationBatch(BATCH.src.repeat(8, 4), BATCH.tgt.repeat(8, 4))
    with Made() as made, torch.autocast("cpu", precision, enabled=precision != torch.float32):
        features = module.network.features(batch.src, batch.tgt_input)
    assert features.requires_grad
    return made.kept_bytes()


@pytest.mark.parametrize("kind", [LitTransformer, RDropTransformer])
def test_losses_and_gradients_are_the_same_with_dropout(kind: Any) -> None:
    expected_loss, expected = loss_and_gradients(make(kind))
    module = make(kind, activation_checkpointing=True)
    calls: list[str] = []
    for layer in module.network.sharded_parts():
        layer.feed_forward.register_forward_pre_hook(lambda layer, _: calls.append(type(layer).__name__))
    loss, found = loss_and_gradients(module)
    assert len(calls) == 2 * 4  # each of the four layers works twice
    assert loss == expected_loss
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12, msg=name)
    assert list(module.state_dict()) == list(make(kind).state_dict())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_less_is_kept(precision: torch.dtype) -> None:
    plain, checkpointed = kept_bytes(precision), kept_bytes(precision, activation_checkpointing=True)
    assert checkpointed < plain / 4


def test_evaluation_computes_nothing_twice() -> None:
    module = make(LitTransformer, activation_checkpointing=True)
    calls: list[int] = []
    module.network.decoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        module.compute_loss(BATCH)
    module.eval().compute_loss(BATCH).loss.backward()
    assert len(calls) == 2


def test_the_way_without_padding_steps_aside() -> None:
    network = Transformer(24, num_layers=1, d_model=16, d_ff=32, num_heads=2)
    assert can_pack(network)
    LitTransformer(network, activation_checkpointing=True)
    assert not can_pack(network)


def test_a_network_that_cannot_is_refused() -> None:
    class Other(TranslationNetwork):
        vocab_size = 24

        def forward(self, src: Tensor, tgt_input: Tensor) -> Tensor: ...
        def start(self, src: Tensor) -> Any: ...
        def step(self, tokens: Tensor, state: Any) -> Any: ...

    with pytest.raises(InputError, match="Other cannot checkpoint activations: override"):
        LitTransformer(Other(), activation_checkpointing=True)


class OwnEncoder(Encoder):
    """Runs its layers in a way of its own."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return tokens


def test_an_encoder_or_decoder_of_somebody_else_is_refused() -> None:
    def network() -> Transformer:
        return Transformer(24, num_layers=1, d_model=16, d_ff=32, num_heads=2)

    overridden, patched, replaced = network(), network(), network()
    overridden.encoder = OwnEncoder(overridden.encoder.layers)
    patched.decoder.forward = lambda tokens, *_: tokens  # type: ignore[method-assign]
    replaced.decoder = torch.nn.Identity()  # type: ignore[assignment]
    for given, name in (
        (overridden, "encoder of Transformer, OwnEncoder"),
        (patched, "decoder of Transformer, Decoder"),
        (replaced, "decoder of Transformer, Identity"),
    ):
        with pytest.raises(InputError, match=f"the {name}, does not run .*: override checkpoint_activations"):
            LitTransformer(given, activation_checkpointing=True)
        assert not getattr(given.encoder, "activation_checkpointing", False)
        LitTransformer(given)


def test_own_layers_are_welcome() -> None:
    class OwnLayer(EncoderLayer):
        def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().forward(tokens, mask) + 1

    network = Transformer(24, num_layers=1, d_model=16, d_ff=32, num_heads=2)
    network.encoder.layers[0].__class__ = OwnLayer
    LitTransformer(network, activation_checkpointing=True)
    assert network.encoder.activation_checkpointing
