"""Budgets, cuts and streams as facts about integers."""

import random
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_transformer.data.batching import LengthLimits, Ragged, TokenBudgetBatches, collate, deal, fill
from lit_transformer.data.corpus import ParallelCorpus
from lit_transformer.data.cursor import lane_start, start_of
from lit_transformer.data.evaluation import EvaluationBatches
from lit_transformer.data.mixing import MixedRows
from lit_transformer.data.pools import PoolStream
from lit_transformer.data.stream import TrainingBatches, batch_seed
from lit_transformer.interfaces import SentencePair

lengths = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=80)


class Letters:
    """Stands in for a tokenizer: one id for each letter, so lengths are easy to see."""

    def encode_src(self, texts):
        return [[*map(ord, text), 3] for text in texts]

    def encode_tgt(self, texts):
        return [[2, *map(ord, text), 3] for text in texts]


class Listed(ParallelCorpus):
    """A corpus held in a list; it is its own source, and its state is the number of rows."""

    def __init__(self, pairs, size=None):
        super().__init__("listed")
        self.pairs, self.size = pairs, size or len(pairs)

    def open(self):
        return self

    def lane(self, lane, num_lanes):
        return None

    def chunks(self, state, size):
        for start in range(state["row"] if state else 0, len(self.pairs), size):
            chunk = self.pairs[start : start + size]
            yield [{"en": src, "de": tgt} for src, tgt in chunk], {"row": start + len(chunk)}

    def approximate_rows(self):
        return self.size


def numbered(count, name="n"):
    """Pairs of several lengths, each of them unique."""
    chooser = random.Random(f"{name}{count}")
    return [
        SentencePair(f"{name}{n}" + "x" * chooser.randint(0, 9), f"{name}{n}" + "y" * chooser.randint(0, 9))
        for n in range(count)
    ]


@given(lengths, st.integers(1, 200), st.text(max_size=3))
def test_budget_is_never_exceeded_and_no_pair_lost_or_doubled(pairs, max_tokens, seed):
    src, tgt = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    batches = TokenBudgetBatches(max_tokens)(src, tgt, seed)
    for rows in batches:
        assert len(rows) * max(src[row] for row in rows) <= max_tokens
        assert len(rows) * max(tgt[row] for row in rows) <= max_tokens
    fitting = [row for row, pair in enumerate(pairs) if max(pair) <= max_tokens]
    assert sorted(row for rows in batches for row in rows) == fitting


@given(lengths, st.integers(60, 300))
def test_cuts_are_as_late_as_the_budget_allows(pairs, max_tokens):
    src, tgt = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    batches = TokenBudgetBatches(max_tokens, shuffle=False)(src, tgt, "1")
    for rows, following in pairwise(batches):
        longer = [*rows, following[0]]
        assert len(longer) * max(max(src[row], tgt[row]) for row in longer) > max_tokens


def test_seed_decides_the_order_and_nothing_else():
    src = [random.Random(n).randint(1, 30) for n in range(500)]
    batches = TokenBudgetBatches(100)
    one, same, other = batches(src, src, "1"), batches(src, src, "1"), batches(src, src, "2")
    assert one == same
    assert one != other
    assert [max(src[row] for row in rows) for rows in one] != sorted(max(src[row] for row in rows) for rows in one)


def test_cost_is_a_seam():
    class Square(TokenBudgetBatches):
        def cost(self, num_pairs, longest_src, longest_tgt):
            return num_pairs * longest_src**2

    batches = Square(100)([5, 5, 5, 5, 10, 11], [1] * 6, "1")
    assert sorted(map(len, batches)) == [1, 4]


def test_fill_on_lengths_like_captions():
    chooser = random.Random(1)
    src = [max(4, round(chooser.gauss(14, 4))) for _ in range(20_000)]
    tgt = [max(4, length + round(chooser.gauss(0, 3))) for length in src]
    batches = TokenBudgetBatches(4096)(src, tgt, "1")
    real = sum(src) + sum(tgt)
    area = sum(len(rows) * (max(src[r] for r in rows) + max(tgt[r] for r in rows)) for rows in batches)
    assert fill(src, tgt, batches) == pytest.approx(real / area)
    assert real / area >= 0.88


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=9), min_size=1, max_size=4), st.integers(1, 12))
def test_deal_splits_without_loss_and_within_one_batch(batches, parts):
    dealt = deal(batches, parts)
    assert len(dealt) == max(parts, len(batches))
    assert [row for part in dealt for row in part if part] == [row for rows in batches for row in rows]
    sizes = [len(part) for part in dealt]
    assert max(sizes) <= max(map(len, batches))
    assert 0 not in sizes or max(sizes) == 1


@given(st.lists(st.lists(st.integers(1, 30_000), max_size=7), min_size=1, max_size=9), st.data())
def test_padding_equals_torch(rows, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12))
    padded = Ragged(rows).pad(chosen)
    expected = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[n], dtype=torch.long) for n in chosen], True)
    assert torch.equal(padded, expected)


def test_collate_keeps_pairs_together():
    batch = collate(Ragged([[5, 3], [6, 7, 3]]), Ragged([[2, 8, 3], [2, 3]]), [1, 0])
    assert batch.src.tolist() == [[6, 7, 3], [5, 3, 0]]
    assert batch.tgt.tolist() == [[2, 3, 0], [2, 8, 3]]
    assert batch.num_labels == 3


def stream(pairs_of, world=1, rank=0, start=None, repeat=False, pool=20, workers=0, budget=60):
    corpora = [Listed(pairs) for pairs in pairs_of]
    pools = PoolStream(corpora, Letters(), TokenBudgetBatches(budget), LengthLimits(max_length=60), pool, 7, repeat)
    return TrainingBatches(pools, lambda: start or start_of(0), rank, world, workers)


def texts(batch):
    return ["".join(map(chr, row[1 : row.index(3)])) for row in batch.tgt.tolist() if any(row)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=3), st.sampled_from([1, 2, 3, 8]), st.integers(1, 40))
def test_one_pass_shows_each_sentence_once_on_any_number_of_processes(sizes, world, pool):
    corpora = [numbered(size, "abc"[index]) for index, size in enumerate(sizes)]
    ranks = [list(stream(corpora, world, rank, pool=pool)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1  # equal steps, or training would hang
    seen = Counter(text for batches in ranks for batch in batches for text in texts(batch))
    assert seen == Counter(pair.tgt for pairs in corpora for pair in pairs)
    assert [[b.cursor for b in batches][-1] for batches in ranks] == [start_of(1)] * world
    for batches in ranks:
        for batch in batches:
            assert batch.src.numel() <= 60
            assert batch.tgt_input.numel() <= 60


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.sampled_from([1, 2]), st.booleans(), st.data())
def test_stream_goes_on_from_any_batch(size, world, repeat, data):
    corpora = [numbered(size, "a"), numbered(33, "b")]
    steps = 40

    def first(start, count):
        return [batch for batch, _ in zip(stream(corpora, world, 0, start, repeat), range(count), strict=False)]

    whole = first(None, steps)
    stop = data.draw(st.integers(1, len(whole)))
    if whole[stop - 1].cursor["epoch"] > 0 and not repeat:
        return  # the pass is over
    rest = first(whole[stop - 1].cursor, steps - stop)
    assert [texts(batch) for batch in rest] == [texts(batch) for batch in whole[stop:]]
    assert [batch.cursor for batch in rest] == [batch.cursor for batch in whole[stop:]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.data())
def test_other_number_of_processes_goes_on_without_loss(size, data):
    corpora = [numbered(size), numbered(41, "b")]
    two = [list(stream(corpora, 2, rank)) for rank in (0, 1)]
    stop = data.draw(st.integers(0, len(two[0]) - 1))  # the last cursor is the next epoch
    before = [text for batches in two for batch in batches[:stop] for text in texts(batch)]
    start = two[0][stop - 1].cursor if stop else None
    after = [text for batch in stream(corpora, 1, 0, start) for text in texts(batch)]
    assert sorted(before + after) == sorted(pair.tgt for pairs in corpora for pair in pairs)


def test_workers_do_not_change_the_stream():
    corpora = [numbered(150), numbered(61, "b")]
    alone = [texts(batch) for batch in stream(corpora, pool=30)]
    assert [texts(batch) for batch in stream(corpora, pool=30, workers=2)] == alone


def test_corpora_are_mixed_in_proportion():
    big, small = Listed(numbered(9000, "b")), Listed(numbered(3000, "s"))
    for _, parts in MixedRows([big, small], 4000).pools(lane_start()):
        counts = Counter()
        for part in parts:
            counts[part.corpus] += len(part.rows)
        assert counts == {0: 3000, 1: 1000}


def test_wrong_size_estimates_lose_nothing():
    corpora = [Listed(numbered(50, "a"), size=10**6), Listed(numbered(90, "b"), size=1)]
    pools = MixedRows(corpora, 16).pools(lane_start())
    rows = [row["de"] for _, parts in pools for part in parts for row in part.rows]
    assert sorted(rows) == sorted(pair.tgt for corpus in corpora for pair in corpus.pairs)


def test_ids_of_a_small_corpus_are_made_once():
    class Counting(Letters):
        calls = 0

        def encode_src(self, sentences):
            self.calls += 1
            return super().encode_src(sentences)

    batches = stream([numbered(50)], repeat=True)
    batches.pools.tokenizer = tokenizer = Counting()
    for _, _ in zip(batches, range(100), strict=False):
        pass
    assert tokenizer.calls == 3  # three pools, many epochs


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.sampled_from([1, 2, 5]), st.sampled_from([10, 1000]))
def test_evaluation_shows_each_sentence_once(size, world, pool):
    corpora = [Listed(numbered(size)), Listed(numbered(7, "b"))]
    ranks = [
        EvaluationBatches(corpora, Letters(), TokenBudgetBatches(60), 8, pool, rank, world) for rank in range(world)
    ]
    pairs = corpora[0].pairs + corpora[1].pairs
    seen = {}
    for loader in ranks:
        for batch in loader:
            assert batch.src.size(1) <= 8
            assert batch.tgt_input.size(1) <= 8
            for row, index in enumerate(batch.indices):
                assert index not in seen
                seen[index] = SentencePair(batch.sources[row], batch.references[row])
        assert loader.sections == [("listed (1)", 0), ("listed (2)", size)]
    assert [seen[index] for index in range(len(pairs))] == pairs
    if pool == 1000:
        assert [len(loader) for loader in ranks] == [len(list(loader)) for loader in ranks]
    elif len(pairs) > 10:
        with pytest.raises(TypeError, match="length"):
            len(ranks[0])


def test_with_fewer_sentences_than_processes_none_tells_a_length():
    """Lightning would leave the evaluation out on a process of length 0, and the others would wait for it."""
    ranks = [EvaluationBatches([Listed(numbered(2))], Letters(), TokenBudgetBatches(60), 8, 99, r, 3) for r in range(3)]
    assert sorted(len(list(loader)) for loader in ranks) == [0, 1, 1]
    for loader in ranks:
        with pytest.raises(TypeError, match="a batch for each process"):
            len(loader)


def test_a_process_without_a_sentence_gets_padding_only():
    batch = list(stream([numbered(1)], 3, 2))[-1]
    assert batch.num_labels == 0
    assert len(batch) == 1


def test_max_tokens_must_be_positive():
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        TokenBudgetBatches(0)


def test_batch_seeds_differ_by_step_rank_and_seed():
    assert len({batch_seed(seed, step, rank) for seed in (1, 2) for step in (0, 1) for rank in (0, 1)}) == 8
    assert batch_seed(1, 2, 3) == batch_seed(1, 2, 3) < 2**63
