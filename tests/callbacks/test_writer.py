"""TranslationWriter writes every sentence once, in order, or nothing at all."""

import errno
import gzip
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from standins import SENTENCES, TRANSLATIONS, Batches, Data, Module, Words, trainer
from torch import multiprocessing
from torch.utils.data import DataLoader

from lit_transformer.callbacks import writer as writer_file
from lit_transformer.callbacks.bleu import BLEUEvaluation
from lit_transformer.callbacks.writer import NumberedLines, TranslationWriter
from lit_transformer.interfaces import Hypothesis, InputError


def predicted(writer: TranslationWriter, batch_size: int = 3, **options: Any) -> list[str]:
    trainer(writer, **options).predict(Module(), datamodule=Data(batch_size), return_predictions=False)
    text = writer.output_path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return text[:-1].split("\n")


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_one_line_for_each_sentence_in_order(tmp_path: Path, batch_size: int) -> None:
    output = tmp_path / "new" / "out.de"
    assert predicted(TranslationWriter(str(output)), batch_size) == TRANSLATIONS
    assert list(output.parent.iterdir()) == [output]


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old\n" * 100)
    assert predicted(TranslationWriter(tmp_path / "out")) == TRANSLATIONS


def test_scores_and_several_translations(tmp_path: Path) -> None:
    word = Words().decode([4])  # what the stand-in module offers as second best
    scored = [f"-0.5000\t{text}" for text in TRANSLATIONS]
    assert predicted(TranslationWriter(tmp_path / "out", scores=True)) == scored
    several = [line for i, text in enumerate(TRANSLATIONS) for line in (f"{i}\t{text}", f"{i}\t{word}")]
    assert predicted(TranslationWriter(tmp_path / "out", n_best=2)) == several
    both = [f"{i}\t-0.5000\t{TRANSLATIONS[i]}" for i in range(len(TRANSLATIONS))]
    assert predicted(TranslationWriter(tmp_path / "out", n_best=5, scores=True))[::2] == both


def test_a_line_break_within_a_translation_is_a_space() -> None:
    class Breaking:
        def decode(self, ids: list[int]) -> str:
            return "one\ntwo\r\nthree\ttabbed"

    writer = TranslationWriter("out")
    assert writer.format(0, [Hypothesis([4], 0.0, 0.0)], Breaking()) == "one two  three\ttabbed"


def test_a_limited_run_writes_what_there_is(tmp_path: Path) -> None:
    longest = sorted(range(len(SENTENCES)), key=lambda i: -len(SENTENCES[i][0]))[:3]  # the first batch
    lines = predicted(TranslationWriter(tmp_path / "out"), limit_predict_batches=1)
    assert lines == [TRANSLATIONS[i] for i in sorted(longest)]


@given(
    owners=st.lists(st.integers(0, 2), min_size=1, max_size=20),
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")), min_size=20, max_size=20),
    seed=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_parts_merge_in_order(
    tmp_path_factory: pytest.TempPathFactory, owners: list[int], texts: list[str], seed: int
) -> None:
    path = tmp_path_factory.mktemp("parts") / "out"
    parts = [NumberedLines(path, rank, 3) for rank in range(3)]
    for number in random.Random(seed).sample(range(len(owners)), len(owners)):
        parts[owners[number]].add(number, texts[number])
    for part in parts:
        part.close()
    assert parts[0].merge() == len(owners)
    for part in parts:
        part.release()
    assert path.read_bytes() == "".join(text + "\n" for text in texts[: len(owners)]).encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 2), "sentence 1 was not translated"),
        ((1,), "sentence 0 was"),
        ((0, 1, 1), "sentence 1 was translated twice"),
    ],
)
def test_missing_and_doubled_sentences_are_named(tmp_path: Path, numbers: tuple[int, ...], message: str) -> None:
    lines = NumberedLines(tmp_path / "out", 0, 1)
    for number in numbers:
        lines.add(number, "text")
    lines.close()
    with pytest.raises(InputError, match=message):
        lines.merge()
    lines.release()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    lines = NumberedLines(tmp_path / "out", 0, 2)
    lines.close()
    with pytest.raises(InputError, match=r"process 1 .* must see the same folder"):
        lines.merge()


def test_what_cannot_be_written_is_told_before_the_first_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Untouched(Module):
        def predict_step(self, batch: Any, batch_idx: int) -> list[list[Hypothesis]]:
            raise AssertionError("nothing should have been translated")

    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "folder").mkdir()
    for name, words in (("folder", "is a folder"), ("out.zst", "needs the extra 'zstd'")):
        with pytest.raises(InputError, match=words):
            trainer(TranslationWriter(tmp_path / name)).predict(Untouched(), datamodule=Data())
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_translations_outlive_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer_file, "compressing", full)
    with pytest.raises(InputError, match=r"out cannot be written: No space left .* is in .*out\.part0, each line"):
        trainer(TranslationWriter(tmp_path / "out")).predict(Module(), datamodule=Data(), return_predictions=False)
    (kept,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert kept.name == "out.part0"
    assert sorted(lines) == [[number, text] for number, text in enumerate(TRANSLATIONS)]
    scored = BLEUEvaluation(output_path=tmp_path / "test.hyp.txt")
    with pytest.raises(InputError, match=r"test\.hyp\.txt\.part0"):
        trainer(scored).test(Module(), datamodule=Data())
    assert (tmp_path / "test.hyp.txt.part0").read_text(encoding="utf-8").count("\n") == len(TRANSLATIONS)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_at_once_do_not_mix_their_lines(tmp_path: Path, rank: int) -> None:
    parts = [NumberedLines(tmp_path / "out", number, 2) for number in (0, 1)]
    parts[rank].add(0, "eins")
    with pytest.raises(InputError, match=r"another command is writing .*out just now"):
        NumberedLines(tmp_path / "out", rank, 2)
    for part in parts:
        part.close()
    assert parts[0].merge() == 1
    for part in parts:
        part.release()
    assert (tmp_path / "out").read_text() == "eins\n"
    NumberedLines(tmp_path / "out", 0, 1).discard()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_broken_run_leaves_the_old_file(tmp_path: Path) -> None:
    class Broken(Module):
        def predict_step(self, batch: Any, batch_idx: int) -> list[list[Hypothesis]]:
            if batch_idx:
                raise RuntimeError("out of coffee")
            return super().predict_step(batch, batch_idx)

    (tmp_path / "out").write_text("old")
    with pytest.raises(RuntimeError, match="out of coffee"):
        trainer(TranslationWriter(tmp_path / "out")).predict(Broken(), datamodule=Data(), return_predictions=False)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_run_that_is_asked_to_end_ends_and_leaves_the_old_file(tmp_path: Path) -> None:
    class Asked(Module):
        def predict_step(self, batch: Any, batch_idx: int) -> list[list[Hypothesis]]:
            assert batch_idx < 2
            if batch_idx:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().predict_step(batch, batch_idx)

    (tmp_path / "out").write_text("old")
    with pytest.raises(SIGTERMException):
        trainer(TranslationWriter(tmp_path / "out")).predict(Asked(), datamodule=Data(1), return_predictions=False)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_name_that_says_so_is_written_compressed(tmp_path: Path) -> None:
    writer = TranslationWriter(tmp_path / "out.gz")
    trainer(writer).predict(Module(), datamodule=Data(3), return_predictions=False)
    written = gzip.decompress((tmp_path / "out.gz").read_bytes())
    assert written.decode().splitlines() == TRANSLATIONS


def test_bad_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_best must be at least 1 translation, got 0"):
        TranslationWriter("out", n_best=0)
    with pytest.raises(ValueError, match="search returned no translation of sentence 3"):
        TranslationWriter("out").format(3, [], Words())
    writer = TranslationWriter(tmp_path / "out", n_best=2)
    with pytest.raises(MisconfigurationException, match="no data module with one"):
        trainer(writer).predict(Module(), DataLoader(Batches(2, 0, 1), batch_size=None))

    class Unnumbered(Batches):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                batch.indices = []
                yield batch

    class UnnumberedData(Data):
        def predict_dataloader(self) -> Any:
            return DataLoader(Unnumbered(2, 0, 1), batch_size=None)

    with pytest.raises(MisconfigurationException, match="a batch of 2 sentences has 0"):
        trainer(writer).predict(Module(), datamodule=UnnumberedData())

    module = Module()
    module.search = BLEUEvaluation().search  # one translation of each sentence
    with pytest.raises(InputError, match=r"n_best=2 .* search returns 1"):
        trainer(writer).predict(module, datamodule=Data())


def _run_in_process(rank: int, folder: str, port: int) -> None:
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"NODE_RANK": "0", "RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    options = {"devices": 2, "strategy": "ddp"}
    writer, evaluation = TranslationWriter(f"{folder}/predict"), BLEUEvaluation(output_path=f"{folder}/test")
    trainer(writer, **options).predict(Module(), datamodule=Data(2), return_predictions=False)
    (result,) = trainer(evaluation, **options).test(Module(), Data(2), verbose=False)
    Path(folder, f"scores{rank}").write_text(json.dumps(result))
    evaluation = BLEUEvaluation(output_path=f"{folder}/again")
    (result,) = trainer(evaluation, **options).test(Module(), Data(7), verbose=False)  # nothing for the second process
    Path(folder, f"again{rank}").write_text(json.dumps(result))


@pytest.mark.slow
def test_two_processes_write_and_score_the_whole_corpus(tmp_path: Path) -> None:
    import socket

    import sacrebleu

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_run_in_process, args=(str(tmp_path), port), nprocs=2)
    for name in ("predict", "test", "again"):
        assert (tmp_path / name).read_text(encoding="utf-8").split("\n") == [*TRANSLATIONS, ""]
    expected = sacrebleu.corpus_bleu(TRANSLATIONS, [[target for _, target in SENTENCES]]).score
    for name in ("scores0", "scores1", "again0", "again1"):
        assert json.loads((tmp_path / name).read_text())["test/bleu"] == pytest.approx(expected, abs=1e-9)
    trainer(BLEUEvaluation(output_path=tmp_path / "alone")).test(Module(), Data(2), verbose=False)
    alone, test, again = (
        json.loads((tmp_path / f"{name}.scores.json").read_text()) for name in ("alone", "test", "again")
    )
    assert alone["scores"] == test["scores"] == again["scores"]  # intervals too
    assert (alone["num_sentences"], test["num_sentences"], test["device"]) == (7, 7, "2 x cpu")
    assert len(list(tmp_path.iterdir())) == 5 + 3 * 3  # no parts are left
