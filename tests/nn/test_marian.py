"""The whole network against Hugging Face's Marian, an independent implementation of the paper."""

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from lit_transformer.nn import SinusoidalPositions, Transformer
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID

NAMES = {  # ours: theirs
    "self_attention.query": "self_attn.q_proj",
    "self_attention.key": "self_attn.k_proj",
    "self_attention.value": "self_attn.v_proj",
    "self_attention.output": "self_attn.out_proj",
    "self_attention_residual.norm": "self_attn_layer_norm",
    "cross_attention.query": "encoder_attn.q_proj",
    "cross_attention.key": "encoder_attn.k_proj",
    "cross_attention.value": "encoder_attn.v_proj",
    "cross_attention.output": "encoder_attn.out_proj",
    "cross_attention_residual.norm": "encoder_attn_layer_norm",
    "feed_forward.inner": "fc1",
    "feed_forward.outer": "fc2",
    "feed_forward_residual.norm": "final_layer_norm",
}


class SinesThenCosines(SinusoidalPositions):
    """Marian's order of the same waves: all sines in the first half, all cosines in the second."""

    def forward(self, tokens, start=0):
        shift = super().forward(torch.zeros_like(tokens), start)
        return tokens + torch.cat((shift[..., 0::2], shift[..., 1::2]), dim=-1)


class MarianTransformer(Transformer):
    def build_positions(self):
        return SinesThenCosines(self.d_model)


def pair(vocab_size, num_layers, d_model, d_ff, num_heads, activation):
    config = MarianConfig(
        vocab_size=vocab_size,
        encoder_layers=num_layers,
        decoder_layers=num_layers,
        d_model=d_model,
        encoder_ffn_dim=d_ff,
        decoder_ffn_dim=d_ff,
        encoder_attention_heads=num_heads,
        decoder_attention_heads=num_heads,
        activation_function=activation,
        scale_embedding=True,
        static_position_embeddings=True,
        max_position_embeddings=64,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=BOS_ID,
        decoder_start_token_id=BOS_ID,
        forced_eos_token_id=None,
    )
    theirs = MarianMTModel(config).eval()
    ours = MarianTransformer(
        vocab_size, num_layers=num_layers, d_model=d_model, d_ff=d_ff, num_heads=num_heads, activation=activation
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "embed_positions" not in name:
                parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    weights = theirs.state_dict()
    assert weights["final_logits_bias"].count_nonzero() == 0
    mapped = {name: weights["model.shared.weight"] for name in ours.state_dict() if "layers" not in name}
    for name in ours.state_dict():
        if "layers" in name:
            side, layers, index, inside = name.split(".", 3)
            inside, kind = inside.rsplit(".", 1)
            mapped[name] = weights[f"model.{side}.{layers}.{index}.{NAMES[inside]}.{kind}"]
    ours.load_state_dict(mapped)
    return ours, theirs


@pytest.mark.parametrize(
    ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "activation"),
    [(40, 2, 16, 32, 4, "relu"), (90, 6, 32, 48, 2, "relu"), (50, 1, 24, 64, 3, "gelu")],
)
def test_logits_equal_marian(vocab_size, num_layers, d_model, d_ff, num_heads, activation):
    ours, theirs = pair(vocab_size, num_layers, d_model, d_ff, num_heads, activation)
    src = torch.randint(4, vocab_size, (4, 9))
    src[1, 4:], src[3, 1:] = PAD_ID, PAD_ID
    tgt_input = torch.randint(4, vocab_size, (4, 7))
    tgt_input[:, 0] = BOS_ID
    with torch.no_grad():
        expected = theirs(input_ids=src, attention_mask=(src != PAD_ID).long(), decoder_input_ids=tgt_input).logits
        logits = ours(src, tgt_input)
        state = ours.start(src)
        steps = [ours.step(tgt_input[:, t], state)[0] for t in range(7)]
    assert expected.std(dim=(0, 1)).min() > 0.05  # every score depends on what was read
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, atol=1e-4, rtol=0)
