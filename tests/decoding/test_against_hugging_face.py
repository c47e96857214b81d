"""The searches against ``transformers``, on one tiny Marian model with random weights."""

import pytest
import torch
from toy_networks import has_no_repeats, sources
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, MarianConfig, MarianMTModel

from lit_transformer.decoding import BeamSearch, GreedySearch
from lit_transformer.interfaces import DecoderState, TranslationNetwork
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID

VOCAB_SIZE = 24
EXTRA = 5


class WordPower(BeamSearch):
    """Hugging Face's penalty: the length to the power of alpha, EOS counted as here."""

    def penalty(self, length):
        return length**self.length_penalty


class MarianState(DecoderState):
    def __init__(self, memory, mask, prefixes):
        self.memory, self.mask, self.prefixes = memory, mask, prefixes

    def select(self, rows):
        return MarianState(self.memory[rows], self.mask[rows], self.prefixes[rows])


class MarianNetwork(TranslationNetwork):
    """A Marian model as our kind of network, without its cache."""

    def __init__(self, model):
        super().__init__()
        self.model, self.vocab_size = model, VOCAB_SIZE

    def forward(self, src, tgt_input):
        return self.model(input_ids=src, attention_mask=(src != PAD_ID).long(), decoder_input_ids=tgt_input).logits

    def start(self, src):
        mask = (src != PAD_ID).long()
        memory = self.model.get_encoder()(input_ids=src, attention_mask=mask).last_hidden_state
        return MarianState(memory, mask, src.new_empty(len(src), 0))

    def step(self, tokens, state):
        prefixes = torch.cat((state.prefixes, tokens.unsqueeze(1)), dim=1)
        output = self.model(
            encoder_outputs=(state.memory,), attention_mask=state.mask, decoder_input_ids=prefixes, use_cache=False
        )
        return output.logits[:, -1], MarianState(state.memory, state.mask, prefixes)


class OnlyWhatWeAllow(LogitsProcessor):
    """Neither PAD nor BOS, and nothing but EOS at the cap, all with the log probabilities of the network."""

    def __init__(self, cap):
        self.cap = cap

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, [PAD_ID, BOS_ID]] = -float("inf")
        if input_ids.size(1) == self.cap:  # BOS and cap - 1 tokens
            eos = scores[:, EOS_ID].clone()
            scores[:] = -float("inf")
            scores[:, EOS_ID] = eos
        return scores


@pytest.fixture(scope="module", params=[(0, 4.0), (1, 4.0), (2, 8.0)])
def network(request):
    seed, eos_bias = request.param
    torch.manual_seed(seed)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=VOCAB_SIZE,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=40,
            init_std=0.7,
            scale_embedding=False,
            tie_word_embeddings=False,  # tied, an untrained model repeats itself
            pad_token_id=PAD_ID,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            forced_eos_token_id=None,
            decoder_start_token_id=BOS_ID,
        )
    )
    model.final_logits_bias[0, EOS_ID] = eos_bias  # so that some hypotheses end before the cap
    return MarianNetwork(model.eval())


def generate(network, src, length, **options):
    """Sequences without BOS and from EOS on, and their scores; ``length`` is that of every source."""
    config = GenerationConfig(
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        decoder_start_token_id=BOS_ID,
        max_new_tokens=length + EXTRA,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    output = network.model.generate(
        input_ids=src,
        attention_mask=(src != PAD_ID).long(),
        generation_config=config,
        logits_processor=LogitsProcessorList([OnlyWhatWeAllow(length + EXTRA)]),
    )
    sequences = [row[1 : row.index(EOS_ID)] for row in output.sequences.tolist()]
    return sequences, getattr(output, "sequences_scores", None)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 1.7])
@pytest.mark.parametrize(("stop_early", "early_stopping"), [(False, "never"), (True, True)])
@torch.no_grad()
def test_beam_search_finds_the_same_with_the_same_scores(network, alpha, stop_early, early_stopping):
    search = WordPower(beam_size=4, length_penalty=alpha, max_extra_length=EXTRA, n_best=3, stop_early=stop_early)
    for length in (2, 5, 8):
        src = sources(*[length] * 6, seed=length, vocab_size=VOCAB_SIZE)
        found = [hypothesis for hypotheses in search(network, src) for hypothesis in hypotheses]
        sequences, scores = generate(
            network,
            src,
            length,
            num_beams=4,
            num_return_sequences=3,
            length_penalty=alpha,
            early_stopping=early_stopping,
        )
        assert [hypothesis.tokens for hypothesis in found] == sequences
        torch.testing.assert_close(torch.tensor([hypothesis.score for hypothesis in found]), scores)


@torch.no_grad()
def test_greedy_search_finds_the_same(network):
    for length in (2, 5, 8):
        src = sources(*[length] * 6, seed=length, vocab_size=VOCAB_SIZE)
        found = [hypothesis.tokens for (hypothesis,) in GreedySearch(EXTRA)(network, src)]
        assert found == generate(network, src, length, num_beams=1)[0]


@pytest.mark.parametrize("ngram_size", [1, 2, 3])
@torch.no_grad()
def test_searches_without_repeats_find_the_same(network, ngram_size):
    beam = WordPower(4, 1.0, EXTRA, n_best=3, no_repeat_ngram_size=ngram_size)
    greedy = GreedySearch(EXTRA, no_repeat_ngram_size=ngram_size)
    for length in (5, 8):
        src = sources(*[length] * 6, seed=length, vocab_size=VOCAB_SIZE)
        found = [hypothesis for hypotheses in beam(network, src) for hypothesis in hypotheses]
        options = {"num_return_sequences": 3, "length_penalty": 1.0, "early_stopping": "never"}
        sequences, scores = generate(network, src, length, num_beams=4, no_repeat_ngram_size=ngram_size, **options)
        assert [hypothesis.tokens for hypothesis in found] == sequences
        torch.testing.assert_close(torch.tensor([hypothesis.score for hypothesis in found]), scores)
        taken = [hypothesis.tokens for (hypothesis,) in greedy(network, src)]
        assert taken == generate(network, src, length, num_beams=1, no_repeat_ngram_size=ngram_size)[0]


@torch.no_grad()
def test_without_a_ban_there_are_repeats(network):
    src = sources(*[8] * 6, seed=8, vocab_size=VOCAB_SIZE)
    assert not all(has_no_repeats(tuple(one.tokens), 2) for (one,) in GreedySearch(EXTRA)(network, src))


@torch.no_grad()
def test_the_sequences_above_are_neither_all_cut_nor_all_alike(network):
    src = sources(*[5] * 12, seed=5, vocab_size=VOCAB_SIZE)
    results = [h for alpha in (0.0, 1.0) for found in WordPower(4, alpha, EXTRA, n_best=3)(network, src) for h in found]
    assert len({len(hypothesis.tokens) for hypothesis in results}) > 2
    assert len({tuple(hypothesis.tokens) for hypothesis in results}) > 10
