"""The searches with the package's own network: cached steps against plain searches that read every prefix anew."""

import pytest
import torch
from toy_networks import assert_same, gnmt, plain_beam_search, real_tokens, sources

from lit_transformer.decoding import BeamSearch, GreedySearch
from lit_transformer.nn import Transformer
from lit_transformer.vocabulary import BOS_ID


class FullPasses:
    """Log probabilities for the plain searches, from one full pass without cache for each prefix."""

    def __init__(self, network):
        self.network, self.vocab_size = network, network.vocab_size

    @torch.no_grad()
    def log_probs(self, source, prefix):
        logits = self.network(torch.tensor([source]), torch.tensor([[BOS_ID, *prefix]]))
        return logits[0, -1].double().log_softmax(0).tolist()


@pytest.fixture(params=range(2))
def network(request):
    torch.manual_seed(request.param)
    network = Transformer(vocab_size=12, num_layers=2, d_model=16, d_ff=32, num_heads=2, tie="none", max_length=9)
    torch.nn.init.normal_(network.projection.weight, std=0.7)  # away from near ties
    return network.eval()


@pytest.mark.parametrize(("beam_size", "n_best"), [(1, 1), (3, 2), (4, 4)])
@torch.no_grad()
def test_beam_search_equals_a_plain_one_without_cache(network, beam_size, n_best):
    src = sources(4, 1, 7, 3, vocab_size=12)
    results = BeamSearch(beam_size, max_extra_length=3, n_best=n_best)(network, src)
    for source, found in zip(real_tokens(src), results, strict=True):
        cap = min(len(source) + 3, 9)
        expected, _ = plain_beam_search(FullPasses(network), source, cap, beam_size, gnmt(0.6))
        assert_same(found, expected[:n_best])


@torch.no_grad()
def test_greedy_search_equals_a_plain_beam_of_one(network):
    src = sources(4, 1, 7, 3, vocab_size=12)
    results = GreedySearch(max_extra_length=3)(network, src)
    for source, found in zip(real_tokens(src), results, strict=True):
        cap = min(len(source) + 3, 9)
        assert_same(found, plain_beam_search(FullPasses(network), source, cap, 1, gnmt(0.0))[0])


@torch.inference_mode()
def test_searches_work_in_inference_mode_and_on_half_precision_scores(network):
    src = sources(4, 1, 7, 3, vocab_size=12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for search in (GreedySearch(3), BeamSearch(3, max_extra_length=3)):
            assert all(found[0].log_prob < 0 for found in search(network, src))


@pytest.mark.gpu
@torch.inference_mode()
def test_a_gpu_finds_what_the_cpu_finds(network):
    src = sources(4, 1, 7, 3, 5, 2, vocab_size=12)
    for search in (GreedySearch(3), BeamSearch(3, max_extra_length=3, n_best=2)):
        on_cpu = search(network.cpu(), src)
        on_gpu = search(network.cuda(), src.cuda())
        assert [[h.tokens for h in found] for found in on_gpu] == [[h.tokens for h in found] for found in on_cpu]
