"""The compiled step against the plain network, its reference; and what stands in its way."""

import gzip
import os
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from test_inference import CHANGES, SIZES, VARIANTS, OwnParts, randomised, source, walk
from torch import nn

from lit_transformer.decoding import BeamSearch, GreedySearch
from lit_transformer.interfaces import InputError
from lit_transformer.nn import Transformer, compiled
from lit_transformer.nn.compiled import CompiledTransformer
from lit_transformer.nn.inference import PreparedTransformer
from lit_transformer.nn.obstacles import compile_obstacle, obstacle
from lit_transformer.vocabulary import EOS_ID, PAD_ID

needs_compiler = pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="needs a C compiler")
ODD = {"vocab_size": 131, "d_model": 66, "d_ff": 77, "activation": "silu"}  # nothing fills a panel


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@needs_compiler
@pytest.mark.parametrize("options", [*VARIANTS, ODD])
@torch.inference_mode()
def test_every_step_equals_that_of_the_plain_network(options):
    torch.manual_seed(0)
    network, src = randomised(Transformer(**{**SIZES, **options})), source()
    expected, found = walk(network, src), walk(CompiledTransformer(network), src)
    assert expected[0].std() > 0.5
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@needs_compiler
@pytest.mark.parametrize("flags", [compiled._FLAGS, tuple(f for f in compiled._FLAGS if f != "-march=native")])
@torch.inference_mode()
def test_8_bits_come_near_on_this_processor_and_on_any(flags, monkeypatch):
    monkeypatch.setattr(compiled, "_FLAGS", flags)
    torch.manual_seed(0)
    network, src = randomised(Transformer(**SIZES)), source()
    expected, found = walk(network, src), walk(CompiledTransformer(network, "int8"), src)
    for ours, theirs in zip(found, expected, strict=True):
        assert 1e-4 < (ours - theirs).norm() / theirs.norm() < 0.05


@needs_compiler
@pytest.mark.parametrize("search", [GreedySearch(10), BeamSearch(max_extra_length=10, n_best=3)])
@torch.inference_mode()
def test_searches_find_the_same(search):
    torch.manual_seed(1)
    network, src = randomised(Transformer(**SIZES)), source()
    src = torch.cat([src, src.flip(0)]).index_fill(1, torch.tensor([0]), EOS_ID)
    assert_same(search(CompiledTransformer(network), src), search(network, src))


def assert_same(found, expected):
    """The same hypotheses; where rounding decides between two, they score alike."""
    differing = 0
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-3)
        differing += [one.tokens for one in ours] != [one.tokens for one in theirs]
    assert differing <= len(found) // 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PreparedTransformer, pytest.param(CompiledTransformer, marks=needs_compiler)])
@pytest.mark.parametrize("search", [GreedySearch(10), BeamSearch(max_extra_length=10)])
@torch.inference_mode()
def test_500_real_sentences_are_translated_alike(kind, search):
    """Needs the folder of Multi30k's text files in the variable MULTI30K."""
    path = Path(os.environ.get("MULTI30K", "."), "test_2016_flickr.en.gz")
    if not path.is_file():
        pytest.skip("MULTI30K does not name a folder with test_2016_flickr.en.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [[4 + zlib.crc32(word.encode()) % 996 for word in line.split()] for line in list(file)[:500]]
    torch.manual_seed(0)
    network = Transformer(1000, num_layers=2, d_model=64, d_ff=128, num_heads=4).eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.mul_(2)  # so that outputs vary
    fast = kind(network)
    for first in range(0, 500, 50):
        batch = rows[first : first + 50]
        width = max(map(len, batch)) + 1
        src = torch.tensor([[*row, EOS_ID] + [PAD_ID] * (width - len(row) - 1) for row in batch])
        expected = search(network, src)
        assert len({tuple(found[0].tokens) for found in expected}) > 40
        assert_same(search(fast, src), expected)


@needs_compiler
def test_a_changed_weight_is_noticed():
    network = Transformer(**SIZES).eval()
    fast = CompiledTransformer(network)
    assert fast.is_current()
    network.load_state_dict(Transformer(**SIZES).state_dict())
    assert not fast.is_current()


@needs_compiler
@torch.no_grad()
def test_teacher_forcing_uses_the_plain_network_and_other_states_are_refused():
    network, src = Transformer(**SIZES).eval(), source()
    fast = CompiledTransformer(network)
    torch.testing.assert_close(fast(src, src), network(src, src), rtol=0, atol=0)
    with pytest.raises(TypeError, match="step needs the CompiledState that start returned, got TransformerState"):
        fast.step(src[:, 0], network.start(src))


@needs_compiler
@pytest.mark.parametrize("change", CHANGES)
@torch.inference_mode()
def test_whatever_somebody_changed_counts_or_stands_in_the_way(change):
    torch.manual_seed(0)
    network, src = randomised(Transformer(**SIZES)), source()
    CHANGES[change](network)
    network.eval()
    if obstacle(network) or compile_obstacle(network, "float32"):
        with pytest.raises(ValueError, match="the network cannot be"):
            CompiledTransformer(network)
        return
    assert "encoder" in change
    for ours, theirs in zip(walk(CompiledTransformer(network), src, 3), walk(network, src, 3), strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@needs_compiler
def test_what_would_lead_past_the_end_of_memory_is_refused():
    fast, src = CompiledTransformer(Transformer(**SIZES).eval()), source()
    message = r"step needs one token for each row of the state, \(5,\), got "
    for tokens in (src[:1, 0], torch.cat([src[:, 0], src[:, 0]])):
        with pytest.raises(ValueError, match=message):
            fast.step(tokens, fast.start(src))
    wider = CompiledTransformer(Transformer(**{**SIZES, "d_model": 32}).eval())
    with pytest.raises(ValueError, match="with 2 layers of 64 features, got 2 of 32"):
        wider.step(src[:, 0], fast.start(src))


@needs_compiler
@torch.inference_mode()
def test_under_autocast_everything_stays_float32():
    torch.manual_seed(0)
    fast, src = CompiledTransformer(randomised(Transformer(**SIZES))), source()
    expected = walk(fast, src, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = walk(fast, src, 5)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@torch.no_grad()
def test_broken_weights_give_no_scores(precision, value):
    network, src = Transformer(**SIZES).eval(), source()
    network.decoder.layers[0].feed_forward.inner.bias.fill_(value)
    fast = CompiledTransformer(network, precision)
    assert fast.step(src[:, 0], fast.start(src))[0].isnan().all()
    assert network.step(src[:, 0], network.start(src))[0].isnan().all()


def test_what_cannot_be_compiled_is_named():
    network = Transformer(**SIZES).eval()
    assert compile_obstacle(network, "float32") is None
    assert compile_obstacle(network, "bf16") == "compiled steps are float32 or int8, not bf16"
    own = "Tempered has an attention rule of its own"
    assert compile_obstacle(OwnParts(**SIZES).eval(), "float32") == own
    with pytest.raises(ValueError, match=f"the network cannot be compiled: {own}"):
        CompiledTransformer(OwnParts(**SIZES).eval())
    wide = Transformer(**{**SIZES, "tie": "none"}).eval()
    wide.projection = nn.Linear(wide.d_model, wide.vocab_size + 8, bias=False)  # padded, as some do for GPUs
    words = f"its output layer is not of d_model={wide.d_model} by vocab_size={wide.vocab_size}"
    assert compile_obstacle(wide, "float32") == words
    network.decoder.layers[1].feed_forward.activation = nn.Tanh()
    assert compile_obstacle(network, "int8") == "PositionwiseFeedForward is not as the package builds it"
    network.decoder.layers[1] = Transformer(**{**SIZES, "norm": "pre"}).decoder.layers[0]
    assert compile_obstacle(network, "int8") == "its decoder layers are not all alike"
    network.decoder.final_norm = nn.Identity()
    assert compile_obstacle(network, "int8") == "Identity is not LayerNorm"


@needs_compiler
def test_it_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = Transformer(**SIZES).eval()
    CompiledTransformer(network)
    (built,) = (tmp_path / "lit-transformer").iterdir()
    written = built.stat().st_mtime_ns
    CompiledTransformer(network)
    assert [built.stat().st_mtime_ns] == [one.stat().st_mtime_ns for one in (tmp_path / "lit-transformer").iterdir()]
    assert built.stat().st_mtime_ns == written


@needs_compiler
def test_a_damaged_file_is_built_again_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network, folder, build, paths = Transformer(**SIZES).eval(), tmp_path / "lit-transformer", compiled._build, []

    def damage(compiler, target):
        paths.append(target)
        target.write_bytes(b"half a file")
        target.chmod(0o700)
        return compiled.ctypes.CDLL(str(target))

    monkeypatch.setattr(compiled, "_build", damage)
    for number in (1, 2):
        with pytest.raises(InputError, match=rf"cannot be kept in {folder} \(.*\); set XDG_CACHE_HOME"):
            CompiledTransformer(network)
        assert len(paths) == number
    monkeypatch.setattr(compiled, "_build", build)
    CompiledTransformer(network)
    assert paths[0].stat().st_size > 1000


@needs_compiler
def test_code_that_others_can_change_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network, folder = Transformer(**SIZES).eval(), tmp_path / "lit-transformer"
    old = os.umask(0)  # as careless as can be
    try:
        CompiledTransformer(network)
    finally:
        os.umask(old)
    (built,) = folder.iterdir()
    for path in (built, folder):
        path.chmod(0o777)
        with pytest.raises(InputError, match=f"not loaded from {path}, which another user owns or others can write to"):
            CompiledTransformer(network)
        path.chmod(0o700)
    CompiledTransformer(network)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    if folder.stat().st_uid != 0:  # what root owns is trusted
        with pytest.raises(InputError, match="another user owns"):
            CompiledTransformer(network)


def test_no_compiler_or_a_broken_one_is_one_sentence(tmp_path, monkeypatch):
    network = Transformer(**SIZES).eval()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(InputError, match="compiled steps need a C compiler"):
        CompiledTransformer(network)
    script = tmp_path / "broken"
    script.write_text("#!/bin/sh\necho 'fatal error: no headers' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    with pytest.raises(InputError, match="broken cannot build the compiled step: fatal error: no headers"):
        CompiledTransformer(network)
    assert list((tmp_path / "lit-transformer").iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(script))
    with pytest.raises(InputError, match=r"the compiled step cannot be kept in .*; set XDG_CACHE_HOME"):
        CompiledTransformer(network)
