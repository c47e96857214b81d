"""The token cache: written once, the same sentences as the stream, and a run on it resumes exactly."""

import logging
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pyarrow
import pytest
from simulated import Letters, Numbers, ranks, sequence, texts
from test_datamodule import Tiny, make_data, make_trainer, run, same_weights, write_corpus

from lit_transformer.data.batching import LengthLimits, TokenBudgetBatches
from lit_transformer.data.cache import TokenCache, cache_fingerprint, open_cache, write_or_open_cache
from lit_transformer.data.cached_pools import CachedPools
from lit_transformer.data.corpus import CorpusError, ParallelCorpus
from lit_transformer.data.cursor import start_of
from lit_transformer.data.pools import PoolStream
from lit_transformer.data.stream import TrainingBatches
from lit_transformer.data.tokenizer import SubwordTokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


def epoch_of(pools):
    return Counter(
        (tuple(src), tuple(tgt)) for batch in TrainingBatches(pools, lambda: start_of(0)) for src, tgt in rows_of(batch)
    )


def rows_of(batch):
    pairs = zip(batch.src.tolist(), batch.tgt.tolist(), strict=True)
    return [([i for i in src if i], [i for i in tgt if i]) for src, tgt in pairs if any(tgt)]


@pytest.mark.parametrize("limits", [LengthLimits(256), LengthLimits(18), LengthLimits(60, 1.2)])
def test_holds_the_same_pairs_as_the_stream_and_drops_the_same(tmp_path, limits):
    (tmp_path / "odd.en").write_text("a b\n\nHund\n" + "x " * 300 + "\n", encoding="utf-8")
    (tmp_path / "odd.de").write_text("b a\nleer\n\ny\n", encoding="utf-8")
    corpora = [write_corpus(tmp_path, 150), ParallelCorpus(str(tmp_path / "odd")), write_corpus(tmp_path, 40, "b")]
    tokenizer = SubwordTokenizer(vocab_size=400)
    tokenizer.train(corpora[0])
    stream = PoolStream(corpora, tokenizer, TokenBudgetBatches(120), limits, 64)
    pools = CachedPools(
        write_or_open_cache(tmp_path / "a.arrow", corpora, tokenizer), TokenBudgetBatches(120), limits, 64
    )
    dropped = Counter()
    for item in stream:
        dropped.update(getattr(item, "dropped", {}))
    assert epoch_of(pools) == epoch_of(stream)
    assert pools.dropped == dropped
    assert dropped["empty"] == 2
    assert dropped.total() > 2


def test_any_arrow_reader_can_read_it(tmp_path):
    write_or_open_cache(tmp_path / "a.arrow", [Numbers(3)], Letters())
    with pyarrow.memory_map(str(tmp_path / "a.arrow")) as file:
        table = pyarrow.ipc.open_file(file).read_all().to_pydict()
    letters = Letters()
    assert table == {"src": letters.encode_src(Numbers(3).texts()), "tgt": letters.encode_tgt(Numbers(3).texts())}


@pytest.mark.parametrize(("vocab_size", "kind"), [(1 << 16, "uint16"), ((1 << 16) + 1, "int32")])
def test_ids_take_two_bytes_where_that_is_enough(tmp_path, vocab_size, kind):
    class Largest(Letters):
        def encode_src(self, sentences):
            return [[self.src_vocab_size - 1, 3] for _ in sentences]

    tokenizer = Largest()
    tokenizer.src_vocab_size = vocab_size
    cache = write_or_open_cache(tmp_path / "a.arrow", [Numbers(5)], tokenizer)
    assert cache.ids("src", 4).tolist() == [vocab_size - 1, 3]
    assert str(cache.ids("tgt", 0).dtype) == kind


def test_epochs_shuffle_the_whole_text(tmp_path):
    cache = write_or_open_cache(tmp_path / "a.arrow", [Numbers(500, "a"), Numbers(500, "b")], Letters())
    settings = (TokenBudgetBatches(60), LengthLimits(60), 50, 7)
    pools = CachedPools(cache, *settings, repeat=True)
    sentences = [text for batch, _ in zip(stream_of(pools), range(600), strict=False) for text in texts(batch)]
    first, second = sentences[:1000], sentences[1000:2000]
    assert set(first) == set(second)
    assert len(set(first)) == 1000
    for epoch in (first, second):
        assert 10 < sum(text.startswith("a") for text in epoch[:50]) < 40
        assert len({text[:2] for text in epoch[:50] if text.startswith("a")}) > 5
    assert first[:50] != second[:50]
    plain = CachedPools(cache, TokenBudgetBatches(60, shuffle=False), LengthLimits(60), 50)
    assert {text for batch, _ in zip(stream_of(plain), range(3), strict=False) for text in texts(batch)} <= set(
        Numbers(50, "a").texts()
    )


def test_shares_repeat_small_corpora_and_leave_no_pair_out(tmp_path):
    corpora = [Numbers(900, "a"), Numbers(100, "b"), Numbers(60, "c")]
    cache = write_or_open_cache(tmp_path / "a.arrow", corpora, Letters())
    assert cache.ends == [900, 1000, 1060]
    pools = CachedPools(cache, TokenBudgetBatches(60), LengthLimits(60), 50, 7, shares=[2.0, 1.0, 0.1])
    seen = Counter(text for batch in stream_of(pools) for text in texts(batch))
    counts = [Counter(seen[text] for text in corpus.texts()) for corpus in corpora]
    assert counts == [{1: 600, 2: 300}, {6: 100}, {1: 60}]  # 1200, 600 and 60 pairs


def stream_of(pools):
    return TrainingBatches(pools, lambda: start_of(0))


@pytest.mark.parametrize("world", [1, 2, 8, 64])
def test_processes_tokenise_once_together_and_look_at_their_share_only(tmp_path, world, monkeypatch):
    looked, tokenizer = Counter(), Letters()
    ids = TokenCache.ids
    monkeypatch.setattr(
        TokenCache, "ids", lambda *place: looked.update([threading.current_thread().name]) or ids(*place)
    )

    def make_pools(rank):
        cache = write_or_open_cache(tmp_path / "a.arrow", [Numbers(6400)], tokenizer)
        return CachedPools(cache, TokenBudgetBatches(200), LengthLimits(60), 500, 7)

    results = ranks(make_pools, world)
    assert tokenizer.sentences == 6400
    assert len(set(map(len, results))) == 1
    assert Counter(text for batch in sequence(results) for text in batch) == Counter(Numbers(6400).texts())
    assert looked.total() == 2 * 6400
    assert max(looked.values()) <= 1.5 * 2 * 6400 / world


def test_workers_change_nothing(tmp_path):
    cache = write_or_open_cache(tmp_path / "a.arrow", [Numbers(700)], Letters())
    settings = (cache, TokenBudgetBatches(60), LengthLimits(60), 50, 7)
    found = [
        [texts(batch) for batch in TrainingBatches(CachedPools(*settings), lambda: start_of(0), num_workers=workers)]
        for workers in (0, 2)
    ]
    assert found[0] == found[1]


def test_is_mapped_anew_by_another_process_and_never_copied(tmp_path):
    cache = write_or_open_cache(tmp_path / "a.arrow", [Numbers(5000)], Letters())
    packed = pickle.dumps(CachedPools(cache, TokenBudgetBatches(60), LengthLimits(60)).cache)
    assert len(packed) < 1000
    assert pickle.loads(packed) is cache
    open_cache.cache_clear()
    assert pickle.loads(packed).ids("tgt", 4999).tolist() == cache.ids("tgt", 4999).tolist()


def test_is_reused_and_written_anew_only_for_other_ids(tmp_path, caplog):
    path, letters = tmp_path / "deep/a.arrow", Letters()
    with caplog.at_level(logging.INFO, logger="lit_transformer.data.cache"):
        write_or_open_cache(path, [Numbers(30)], letters)
        write_or_open_cache(path, [Numbers(30)], letters)
        assert letters.sentences == 30
        assert len(write_or_open_cache(path, [Numbers(31)], letters)) == 31
        letters.fingerprint = "other"
        write_or_open_cache(path, [Numbers(31)], letters)
    assert letters.sentences == 92
    assert [message.split("because ")[1] for message in caplog.messages if "because" in message] == [
        "it is not there yet",
        *["text, tokenizer or on_bad_row are not the same"] * 2,
    ]
    assert "31 rows" in caplog.messages[-1]
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.arrow"]


def test_says_how_far_it_is(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("lit_transformer.data.cache._PROGRESS_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="lit_transformer.data.cache"):
        write_or_open_cache(tmp_path / "a.arrow", [Numbers(40_000), Numbers(10, "b")], Letters())
    told = [message.split(" of about")[0].split(": ")[-1] for message in caplog.messages if "of about" in message]
    assert told == ["32,000", "40,000", "40,010"]
    assert all("of about 40,010 rows" in message for message in caplog.messages if "of about" in message)
    caplog.clear()
    monkeypatch.setattr(Numbers, "approximate_rows", lambda _: None)
    with caplog.at_level(logging.INFO, logger="lit_transformer.data.cache"):
        write_or_open_cache(tmp_path / "b.arrow", [Numbers(40)], Letters())
    assert any(message.startswith("token cache: 40 rows, ") for message in caplog.messages)


def test_of_several_processes_one_writes(tmp_path):
    class Slow(Letters):
        def encode_src(self, sentences):
            time.sleep(0.2)
            return super().encode_src(sentences)

    tokenizer, found = Slow(), []
    threads = [
        threading.Thread(
            target=lambda: found.append(len(write_or_open_cache(tmp_path / "a.arrow", [Numbers(50)], tokenizer)))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [50] * 4
    assert tokenizer.sentences == 50


def test_a_text_that_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.arrow"
    write_or_open_cache(path, [Numbers(30)], Letters())
    content = path.read_bytes()
    with pytest.raises(CorpusError, match="the connection is down"):
        write_or_open_cache(path, [Numbers(30), Numbers(5000, broken_at=4000)], Letters())
    assert path.read_bytes() == content
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.arrow"]


def test_a_kill_while_writing_leaves_nothing_that_is_taken_for_a_cache(tmp_path):
    script = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from simulated import Letters, Numbers
from lit_transformer.data.cache import write_or_open_cache
class Killing(Letters):
    def encode_tgt(self, sentences):
        if self.sentences > 32_000:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_tgt(sentences)
write_or_open_cache(sys.argv[2], [Numbers(40_000)], Killing())
"""
    path = tmp_path / "a.arrow"
    done = subprocess.run([sys.executable, "-c", script, str(__file__).rpartition("/")[0], str(path)], check=False)
    assert done.returncode == -9
    assert not path.exists()
    assert len(list(tmp_path.glob(".a.arrow.*.tmp"))) == 1
    assert len(write_or_open_cache(path, [Numbers(40)], Letters())) == 40
    assert list(tmp_path.glob(".*.tmp")) == []


def test_only_errors_of_the_file_are_told_as_errors_of_the_file(tmp_path, monkeypatch):
    class Dictionary(Numbers):
        def read_row(self, row):
            raise OSError("the dictionary is lost")

    with pytest.raises(OSError, match=r"^the dictionary is lost$"):
        write_or_open_cache(tmp_path / "a.arrow", [Dictionary(30)], Letters())
    assert list(tmp_path.iterdir()) == []
    for name in ("fsync", "replace"):
        with monkeypatch.context() as broken:
            broken.setattr(f"os.{name}", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(CorpusError, match=r"cannot write the token cache .*a\.arrow: No space left on device"):
                write_or_open_cache(tmp_path / "a.arrow", [Numbers(30)], Letters())
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_one_sentence(tmp_path):
    (tmp_path / f".a.arrow.{socket.gethostname()}.tmp").symlink_to("/dev/full")
    with pytest.raises(CorpusError, match=r"^cannot write the token cache .*a\.arrow: .*No space left on device"):
        write_or_open_cache(tmp_path / "a.arrow", [Numbers(30)], Letters())
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_left_bad_rows_out_does_not_serve_a_run_that_stops_at_them(tmp_path):
    (tmp_path / "a.en").write_text("a b\n" * 8)
    (tmp_path / "a.de").write_text("b a\n" * 6 + "\nb a\n")
    settings = {"train": ParallelCorpus(str(tmp_path / "a")), "cache_path": str(tmp_path / "a.arrow")}
    data = make_data(tmp_path, **settings)
    make_trainer(tmp_path, max_epochs=1).fit(Tiny(), data)
    assert data.dropped == {"empty": 1}
    content = (tmp_path / "a.arrow").read_bytes()
    with pytest.raises(CorpusError, match=r"^row 7 cannot be used: .*a, en-de\) has nothing in 'de'"):
        make_trainer(tmp_path, max_epochs=1).fit(Tiny(), make_data(tmp_path, **settings, on_bad_row="error"))
    assert (tmp_path / "a.arrow").read_bytes() == content


def test_never_overwrites_a_file_of_another_kind(tmp_path):
    (tmp_path / "text.en").write_text("my only copy\n")
    with pytest.raises(CorpusError, match=r"text\.en is no token cache: delete it, or set cache_path to another file"):
        write_or_open_cache(tmp_path / "text.en", [Numbers(3)], Letters())
    table = pyarrow.table({"x": [1]})
    with pyarrow.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(CorpusError, match=r"x\.arrow is another Arrow file, no token cache"):
        write_or_open_cache(tmp_path / "x.arrow", [Numbers(3)], Letters())
    with pytest.raises(CorpusError, match="cannot write the token cache"):
        write_or_open_cache(tmp_path / "text.en" / "a.arrow", [Numbers(3)], Letters())


def test_notices_that_another_run_replaced_it(tmp_path):
    path = str(tmp_path / "a.arrow")
    write_or_open_cache(path, [Numbers(30)], Letters())
    write_or_open_cache(path, [Numbers(31)], Letters())
    open_cache.cache_clear()
    with pytest.raises(CorpusError, match="replaced by another run"):
        open_cache(path, cache_fingerprint([Numbers(30)], Letters()))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0)])
def test_a_run_on_a_cache_resumes_exactly(tmp_path, before, after):
    cached = {"cache_path": str(tmp_path / "a.arrow")}
    whole, _ = run(tmp_path, data_settings=cached | {"num_workers": before}, max_steps=40, accumulate_grad_batches=2)
    assert len(set(whole.seen)) == 230  # into the second epoch
    assert len(whole.seen) > 230
    settings = {"max_steps": 40, "accumulate_grad_batches": 2, "data_settings": cached | {"num_workers": after}}
    for stop in (7, 31):
        again, _ = run(tmp_path, f"at{stop}", tmp_path / f"whole/step={stop}.ckpt", **settings)
        assert again.losses == whole.losses[2 * stop :]
        assert same_weights(whole, again)


def test_a_finite_run_on_a_cache_shows_each_sentence_once(tmp_path):
    module, data = run(tmp_path, data_settings={"cache_path": str(tmp_path / "a.arrow")}, max_epochs=2)
    assert set(Counter(module.seen).values()) == {2}
    assert len(set(module.seen)) == 230
    assert data.cursor == start_of(2)


def test_stream_and_cache_do_not_take_each_others_place(tmp_path):
    cached = {"cache_path": str(tmp_path / "a.arrow")}
    run(tmp_path, "stream", max_steps=2)
    run(tmp_path, "cache", data_settings=cached, max_steps=2)
    for folder, settings in (("stream", cached), ("cache", {})):
        with pytest.raises(CorpusError, match="is_cached was"):
            run(tmp_path, "again", tmp_path / folder / "step=2.ckpt", data_settings=settings, max_steps=4)


def test_lanes_are_for_streams(tmp_path):
    with pytest.raises(ValueError, match="num_lanes=2 is for streams; with cache_path leave it out"):
        make_data(tmp_path, cache_path="a.arrow", num_lanes=2)


def test_dropped_rows_of_a_cache_are_told(tmp_path, caplog):
    data = make_data(tmp_path, max_length=12, cache_path=str(tmp_path / "a.arrow"))
    with caplog.at_level(logging.INFO, logger="lit_transformer.data.datamodule"):
        make_trainer(tmp_path, max_steps=1).fit(Tiny(), data)
    assert data.dropped["overlong"] > 0
    assert f"epoch 0, pool 0: left out {data.dropped['overlong']:,} rows; so far" in caplog.text


def test_the_mixing_of_the_data_module_reaches_the_cache(tmp_path):
    corpora = [write_corpus(tmp_path, rows, name) for name, rows in (("a", 90), ("b", 10))]
    seen = []
    for weights in (None, [1.0, 1.0]):
        data = make_data(tmp_path, train=corpora, cache_path=str(tmp_path / "a.arrow"), weights=weights)
        make_trainer(tmp_path, max_epochs=1).fit(Tiny(), data)
        seen.append(sum(len(batch) for batch in data.train_dataloader()))
    assert seen == [100, 180]


def test_a_cache_counts_what_a_stream_does_not_tell(tmp_path):
    corpora = [write_corpus(tmp_path, rows, name) for name, rows in (("a", 90), ("b", 10))]
    tokenizer = SubwordTokenizer(vocab_size=400)
    tokenizer.train(corpora[0])
    for corpus in corpora:
        corpus.approximate_rows = lambda: None
    settings = {"train": corpora, "tokenizer": tokenizer, "tokenizer_path": None, "temperature": 2.0}
    data = make_data(tmp_path, **settings, cache_path=str(tmp_path / "a.arrow"))
    make_trainer(tmp_path, max_epochs=1).fit(module := Tiny(), data)
    assert len(module.seen) == 90 + 30  # the root of 90 to the root of 10 is 3 to 1
    with pytest.raises(CorpusError, match="is not known: give weights instead of temperature"):
        make_trainer(tmp_path, max_epochs=1).fit(Tiny(), make_data(tmp_path, **settings))


def test_nothing_left_is_an_error(tmp_path):
    data = make_data(tmp_path, max_length=2, cache_path=str(tmp_path / "a.arrow"))
    with pytest.raises(CorpusError, match="no sentence pair is left"):
        make_trainer(tmp_path, max_steps=5).fit(Tiny(), data)
