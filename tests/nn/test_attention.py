import pytest
import torch
from torch import nn

from lit_transformer.nn import KeyValueCache, MultiHeadAttention, causal_mask, padding_mask

SIZES = [(16, 2), (24, 3), (32, 8), (8, 1)]
SHAPES = [(1, 1, 1), (2, 5, 7), (3, 6, 2)]  # B, T, S


@pytest.mark.parametrize(("d_model", "num_heads"), SIZES)
@pytest.mark.parametrize(("batch", "tgt_length", "src_length"), SHAPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_torch_attention(
    copy_weights, real_tokens, d_model, num_heads, batch, tgt_length, src_length, masked, bias
):
    theirs = nn.MultiheadAttention(d_model, num_heads, bias=bias, batch_first=True)
    ours = MultiHeadAttention(d_model, num_heads, bias=bias)
    copy_weights(ours, theirs)
    query, key, value = (torch.randn(batch, n, d_model) for n in (tgt_length, src_length, src_length))
    allowed = real_tokens(batch, src_length) if masked else None
    mask = None if allowed is None else allowed[:, None, None, :]
    expected, weights = theirs(
        query, key, value, key_padding_mask=None if allowed is None else ~allowed, average_attn_weights=False
    )
    torch.testing.assert_close(ours(query, key, value, mask=mask), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.attention_weights(query, key, mask=mask), weights, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_causal_attention_equals_torch(copy_weights, real_tokens, padded):
    theirs, ours = nn.MultiheadAttention(16, 4, batch_first=True), MultiHeadAttention(16, 4)
    copy_weights(ours, theirs)
    tokens = torch.randn(3, 6, 16)
    allowed = real_tokens(3, 6) if padded else None
    mask = None if allowed is None else allowed[:, None, None, :]
    future = torch.triu(torch.ones(6, 6, dtype=torch.bool), diagonal=1)
    expected, weights = theirs(
        tokens,
        tokens,
        tokens,
        key_padding_mask=None if allowed is None else ~allowed,
        attn_mask=future,
        average_attn_weights=False,
    )
    result = ours(tokens, tokens, tokens, mask=mask, is_causal=True)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    ours_weights = ours.attention_weights(tokens, tokens, mask=mask, is_causal=True)
    torch.testing.assert_close(ours_weights, weights, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("d_k", "d_v"), [(3, 3), (5, 2), (2, 7), (16, None), (None, 1)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_free_head_widths_follow_equation_1(d_k, d_v, is_causal):
    attention = MultiHeadAttention(12, 3, d_k=d_k, d_v=d_v)
    d_k, d_v = d_k or 4, d_v or 4
    query, memory = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    heads = []
    for head in range(3):
        keys_of, values_of = slice(head * d_k, (head + 1) * d_k), slice(head * d_v, (head + 1) * d_v)
        scores = attention.query(query)[..., keys_of] @ attention.key(memory)[..., keys_of].mT / d_k**0.5
        if is_causal:
            scores += torch.full((5, 5), float("-inf")).triu(1)
        heads.append(scores.softmax(-1) @ attention.value(memory)[..., values_of])
    expected = attention.output(torch.cat(heads, dim=-1))
    result = attention(query, memory, memory, is_causal=is_causal)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)


def test_weights_reproduce_the_output():
    attention = MultiHeadAttention(16, 4, d_k=3, d_v=5)
    query, memory = torch.randn(2, 3, 16), torch.randn(2, 6, 16)
    mask = padding_mask(torch.tensor([[4, 5, 6, 7, 8, 9], [4, 5, 6, 0, 0, 0]]))
    weights = attention.attention_weights(query, memory, mask)
    assert weights[1, ..., 3:].count_nonzero() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 3))
    values = attention.value(memory).unflatten(-1, (4, 5))
    heads = torch.einsum("bhts,bshv->bthv", weights, values)
    torch.testing.assert_close(
        attention.output(heads.flatten(2)), attention(query, memory, memory, mask), atol=1e-6, rtol=1e-5
    )


def test_dropout_of_weights_acts_in_training_only():
    attention, plain = MultiHeadAttention(16, 2, dropout=0.5), MultiHeadAttention(16, 2)
    plain.load_state_dict(attention.state_dict())
    tokens = torch.randn(2, 8, 16)
    expected = plain(tokens, tokens, tokens, is_causal=True)
    assert not torch.allclose(attention(tokens, tokens, tokens, is_causal=True), expected)
    torch.testing.assert_close(attention.eval()(tokens, tokens, tokens, is_causal=True), expected)


def test_attend_is_a_seam():
    class UniformAttention(MultiHeadAttention):
        def attend(self, query, key, value, mask=None, is_causal=False):
            return value.mean(2, keepdim=True).expand(-1, -1, query.size(2), -1)

    attention = UniformAttention(8, 2)
    memory = torch.randn(2, 5, 8)
    expected = attention.output(attention.value(memory).mean(1, keepdim=True).expand(-1, 3, -1))
    torch.testing.assert_close(attention(torch.randn(2, 3, 8), memory, memory), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 10, "num_heads": 3}, "d_model=10 is not divisible by num_heads=3; give d_k"),
        ({"d_model": 10, "num_heads": 3, "d_k": 4}, "d_model=10 is not divisible by num_heads=3; give d_v"),
        ({"d_model": 8, "num_heads": 2, "d_k": 0}, "d_k must be at least 1, got 0"),
        ({"d_model": 8, "num_heads": 0}, "num_heads must be at least 1"),
        ({"d_model": 8, "num_heads": 2, "dropout": 1.0}, r"must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**arguments)


def test_masks():
    ids = torch.tensor([[5, 6, 0], [7, 0, 0]])
    assert padding_mask(ids).shape == (2, 1, 1, 3)
    assert padding_mask(ids)[:, 0, 0].tolist() == [[True, True, False], [True, False, False]]
    assert padding_mask(ids, pad_id=7)[1, 0, 0].tolist() == [False, True, True]
    assert all(causal_mask(5)[i, j] == (j <= i) for i in range(5) for j in range(5))


@pytest.mark.parametrize("capacity", [1, 3, 32])
def test_cache_equals_concatenation(capacity):
    cache = KeyValueCache(capacity)
    keys, values = torch.empty(3, 2, 0, 4), torch.empty(3, 2, 0, 5)
    for step in range(12):
        new_keys, new_values = torch.randn(len(keys), 2, 1, 4), torch.randn(len(keys), 2, 1, 5)
        keys, values = torch.cat((keys, new_keys), 2), torch.cat((values, new_values), 2)
        kept_keys, kept_values = cache.append(new_keys, new_values)
        torch.testing.assert_close(kept_keys, keys, rtol=0, atol=0)
        torch.testing.assert_close(kept_values, values, rtol=0, atol=0)
        rows = torch.randint(len(keys), (1 + step % 5,))
        cache.select(rows)
        keys, values = keys[rows], values[rows]
    assert cache.length == 12


def test_an_empty_cache_can_be_selected_from():
    cache = KeyValueCache()
    cache.select(torch.tensor([0, 0]))
    assert cache.append(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4))[0].shape == (2, 1, 1, 4)


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_under_autocast_go_through_single_precision(is_causal):
    attention = MultiHeadAttention(16, 2)
    heads = [torch.randn(3, 2, 6, 8, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    mask = None if is_causal else padding_mask(torch.tensor([[4] * 6, [4] * 4 + [0] * 2, [4] + [0] * 5]))
    with torch.autocast("cpu", torch.bfloat16):
        found = attention.attend(*heads, mask, is_causal)
        exact = [head.detach().double().requires_grad_() for head in heads]
    expected = attention.attend(*exact, mask, is_causal)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=0, rtol=2**-8)  # rounded once, at the end
    for mine, reference in zip(
        torch.autograd.grad(found.sum(), heads), torch.autograd.grad(expected.sum(), exact), strict=True
    ):
        torch.testing.assert_close(mine.double(), reference, atol=1e-6, rtol=2**-8)


@pytest.mark.parametrize(("num_heads", "num_sentences"), [(1, 1), (1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize("options", [{"dropout": 1e-9}, {"d_v": 4}, {}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_any_shape_are_those_of_the_formula(num_heads, num_sentences, options, dtype):
    torch.manual_seed(1)
    attention = MultiHeadAttention(16, num_heads, **options).to(dtype)
    tokens = torch.randn(num_sentences, 5, 16, dtype=dtype, requires_grad=True)
    attention(tokens, tokens, tokens, is_causal=True).square().sum().backward()
    found = tokens.grad.clone()
    tokens.grad = None
    queries, keys = (attention._split_heads(one(tokens), attention.d_k) for one in (attention.query, attention.key))
    values = attention._split_heads(attention.value(tokens), attention.d_v)
    scores = (queries @ keys.transpose(-2, -1)).float() / attention.d_k**0.5
    weights = scores.masked_fill(~torch.ones(5, 5).tril().bool(), -torch.inf).softmax(-1)
    heads = (weights @ values.float()).to(dtype)
    attention.output(heads.transpose(1, 2).flatten(2)).square().sum().backward()
    torch.testing.assert_close(found, tokens.grad, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=0.03)


def test_rows_are_picked_alike_where_views_cannot_be_filled(monkeypatch):
    filled, copied = KeyValueCache(capacity=8), KeyValueCache(capacity=8)
    keys, values = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    rows = torch.tensor([2, 0, 0])
    for cache in (filled, copied):
        cache.append(keys, values)
    filled.select(rows)
    plain = torch.index_select

    def without_out(*args, out=None):
        assert out is None
        return plain(*args)

    monkeypatch.setattr("lit_transformer.nn.attention._FILLS_VIEWS", ())
    monkeypatch.setattr(torch, "index_select", without_out)
    copied.select(rows)
    new = torch.zeros(3, 2, 1, 4)
    for found, expected in zip(copied.append(new, new), (keys, values), strict=True):
        torch.testing.assert_close(found, torch.cat((expected[rows], new), 2), rtol=0, atol=0)
    for found, expected in zip(copied.append(new, new), filled.append(new, new), strict=True):
        assert found[:, :, :5].equal(expected[:, :, :5])
