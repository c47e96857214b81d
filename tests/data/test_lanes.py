"""Lanes: one order for any number of processes, each of which reads and tokenises little more than its share."""

from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import Letters, Numbers, sequence, texts

from lit_transformer.data.batching import LengthLimits, TokenBudgetBatches
from lit_transformer.data.corpus import CorpusError, ParallelCorpus
from lit_transformer.data.cursor import joined, start_of
from lit_transformer.data.pools import PoolStream
from lit_transformer.data.stream import TrainingBatches


def ranks(make_corpora, world, lanes, start=None, steps=None, pool=20, budget=60, workers=0):
    """What each of ``world`` processes gets, and how many sentences it tokenised."""
    tokenizers = [Letters() for _ in range(world)]

    def make_pools(rank):
        rows = (make_corpora(), tokenizers[rank], TokenBudgetBatches(budget), LengthLimits(60), pool, 7)
        return PoolStream(*rows, num_lanes=lanes)

    results = simulated.ranks(make_pools, world, start, steps, workers)
    return results, [tokenizer.sentences for tokenizer in tokenizers]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=2), st.sampled_from([1, 2, 3, 8]), st.integers(5, 60))
def test_every_number_of_processes_gives_the_same_sequence(sizes, lanes, pool):
    def corpora():
        return [Numbers(size, "ab"[index]) for index, size in enumerate(sizes)]

    alone = sequence(ranks(corpora, 1, lanes, pool=pool)[0])
    assert Counter(text for batch in alone for text in batch) == Counter(
        text for corpus in corpora() for text in corpus.texts()
    )
    for world in (2, 4, 8):
        results, _ = ranks(corpora, world, lanes, pool=pool)
        assert len(set(map(len, results))) == 1
        assert sequence(results) == alone
        assert all(result[-1].cursor == start_of(1, lanes) for result in results)
        for batch in (batch for result in results for batch in result):
            assert max(batch.src.numel(), batch.tgt_input.numel()) <= 60


@settings(max_examples=8, deadline=None)
@given(st.integers(300, 1500), st.sampled_from([(1, 2, 1), (2, 1, 2), (8, 2, 4), (1, 8, 3)]), st.data())
def test_resume_with_another_number_of_processes_loses_and_doubles_nothing(size, worlds, data):
    def corpora():
        return [Numbers(size)]

    lanes, start, seen = 8, None, []
    for world in worlds[:-1]:
        results, _ = ranks(corpora, world, lanes, start)
        stop = data.draw(st.integers(1, len(results[0])))
        seen += sequence([result[:stop] for result in results])
        start = joined([result[stop - 1].cursor for result in results])
        if start["epoch"]:
            break
    else:
        seen += sequence(ranks(corpora, worlds[-1], lanes, start)[0])
    assert Counter(text for batch in seen for text in batch) == Counter(Numbers(size).texts())


@pytest.mark.parametrize(("world", "lanes"), [(1, 8), (2, 8), (8, 8), (3, 8), (4, 2), (2, 1)])
def test_an_endless_stream_goes_on_from_any_step(world, lanes):
    def corpora():
        return [Numbers(350), Numbers(110, "b")]

    whole, _ = ranks(corpora, world, lanes, steps=150)
    assert whole[0][-1].cursor["epoch"] > 0
    for stop in (1, 7, 60, 101):
        start = joined([result[stop - 1].cursor for result in whole])
        rest, _ = ranks(corpora, world, lanes, start, steps=150 - stop)
        assert [[texts(b) for b in result] for result in rest] == [[texts(b) for b in r[stop:]] for r in whole]
        assert [[b.cursor for b in result] for result in rest] == [[b.cursor for b in r[stop:]] for r in whole]


@pytest.mark.parametrize("world", [1, 2, 8, 64])
def test_a_process_tokenises_its_share_and_little_more(world):
    results, tokenised = ranks(lambda: [Numbers(25_600)], world, 64, pool=200, budget=400)
    assert sum(tokenised) == 25_600
    assert max(tokenised) <= 1.5 * 25_600 / world
    assert len(set(map(len, results))) == 1
    assert sum(len(batch) for batch in sequence(results)) == 25_600


def test_workers_do_not_change_the_lanes():
    def stream(workers):
        limits = TokenBudgetBatches(60), LengthLimits(60), 20, 7
        pools = PoolStream([Numbers(700)], Letters(), *limits, num_lanes=4)
        return TrainingBatches(pools, lambda: start_of(0, 4), num_workers=workers, agree=lambda flags: flags)

    assert [texts(batch) for batch in stream(2)] == [texts(batch) for batch in stream(0)]


def test_64_processes_share_256_row_groups(tmp_path):
    rows = Numbers(256 * 20).texts()
    for number in range(4):
        part = pyarrow.table({"en": rows[number::4], "de": rows[number::4]})
        pyarrow.parquet.write_table(part, tmp_path / f"part{number}.parquet", row_group_size=20)
    corpus = ParallelCorpus(str(tmp_path / "*.parquet"))
    results, tokenised = ranks(lambda: [corpus], 64, 64, budget=100)
    assert Counter(text for batch in sequence(results) for text in batch) == Counter(rows)
    assert len(set(map(len, results))) == 1
    assert max(tokenised) <= 1.5 * len(rows) / 64
    assert sequence(ranks(lambda: [corpus], 1, 64, budget=100)[0]) == sequence(results)


def test_one_broken_process_stops_all_at_the_same_step():
    results, _ = ranks(lambda: [Numbers(4000, broken_at=2100)], 2, 8)
    assert {str(result) for result in results} <= {
        "the connection is down",
        "another process cannot read its part of the training text: see its message",
    }
    assert any(str(result) == "the connection is down" for result in results)


@pytest.mark.parametrize("lanes", [1, 3])
def test_one_process_that_cannot_read_stops_all_that_read_the_same(lanes):
    broken_at = iter([None, 2100])
    results, _ = ranks(lambda: [Numbers(4000, broken_at=next(broken_at))], 2, lanes)
    assert {str(result) for result in results} == {
        "the connection is down",
        "another process cannot read its part of the training text: see its message",
    }


def test_processes_with_different_lanes_must_be_able_to_agree():
    pools = PoolStream([Numbers(9)], Letters(), TokenBudgetBatches(60), LengthLimits(60), num_lanes=4)
    with pytest.raises(ValueError, match="need agree"):
        TrainingBatches(pools, lambda: start_of(0, 4), 0, 2)


def write_text(folder, count):
    for side in ("en", "de"):
        (folder / f"text.{side}").write_text("".join(f"{side} {n}\n" for n in range(count)), encoding="utf-8")
    return ParallelCorpus(str(folder / "text"))


def read_lane(corpus, lane, lanes, state=None, size=10):
    found = []
    for rows, place in corpus.rows(state, size, lane, lanes):
        found.append(([corpus.read_row(row) for row in rows], place))
    return found


@pytest.mark.parametrize("count", [1, 95, 400])
@pytest.mark.parametrize("max_rows", [None, 37])
def test_lanes_of_a_text_file_share_its_lines(tmp_path, count, max_rows):
    corpus = write_text(tmp_path, count)
    corpus.max_rows = max_rows
    expected = [(f"en {n}", f"de {n}") for n in range(min(count, max_rows or count))]
    parts = [read_lane(corpus, lane, 4) for lane in range(4)]
    pairs = [pair for part in parts for rows, _ in part for pair in rows]
    assert sorted(pairs) == sorted(expected)
    for lane, part in enumerate(parts):
        for index, (_, place) in enumerate(part):
            assert [rows for rows, _ in read_lane(corpus, lane, 4, place)] == [rows for rows, _ in part[index + 1 :]]


def test_lanes_notice_lines_that_are_missing_in_other_lanes(tmp_path):
    corpus = write_text(tmp_path, 95)
    (tmp_path / "text.de").write_text("".join(f"de {n}\n" for n in range(93)))
    with pytest.raises(CorpusError, match=r"has 95 lines and .* has 93 lines"):
        read_lane(corpus, 0, 4)


@pytest.mark.parametrize("shards", [3, 8])
def test_lanes_of_tables_are_whole_files_if_there_are_enough(tmp_path, shards):
    for shard in range(shards):
        rows = "".join(f'{{"en": "s{shard} {n}", "de": "t{shard} {n}"}}\n' for n in range(25))
        (tmp_path / f"part{shard}.jsonl").write_text(rows)
    corpus = ParallelCorpus(str(tmp_path / "part*.jsonl"))
    parts = [read_lane(corpus, lane, 2) for lane in range(2)]
    files = [{pair.src.split()[0] for rows, _ in part for pair in rows} for part in parts]
    assert not (files[0] & files[1]) if shards == 8 else files[0] & files[1]
    pairs = [pair.src for part in parts for rows, _ in part for pair in rows]
    assert sorted(pairs) == sorted(f"s{shard} {n}" for shard in range(shards) for n in range(25))
    for index, (_, place) in enumerate(parts[1]):
        assert [rows for rows, _ in read_lane(corpus, 1, 2, place)] == [rows for rows, _ in parts[1][index + 1 :]]
