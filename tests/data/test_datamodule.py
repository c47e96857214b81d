"""The data plug inside real, tiny Trainer runs."""

import itertools
import json
import logging
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import nn

from lit_transformer.callbacks.checkpoint import StepCheckpoint
from lit_transformer.data.batching import TokenBudgetBatches
from lit_transformer.data.corpus import CorpusError, ParallelCorpus
from lit_transformer.data.cursor import lane_start, start_of
from lit_transformer.data.datamodule import TranslationDataModule
from lit_transformer.data.memory import MemoryCorpus
from lit_transformer.data.mixing import MixedRows, Mixing
from lit_transformer.data.position import StreamPosition
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import InputError, SentencePair

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 on torch 2.13
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # these runs share a folder on purpose
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

WORDS = ["ein", "zwei", "drei", "vier", "Hund", "Katze", "Maus", "Vogel", "rot", "blau"]


def write_corpus(folder: Path, rows: int, name: str = "train") -> ParallelCorpus:
    """Every sentence is unique: its first word is its number."""
    chooser = random.Random(f"{name}/{rows}")
    sides: dict[str, list[str]] = {"en": [], "de": []}
    for number in range(rows):
        words = chooser.choices(WORDS, k=chooser.randint(1, 12))
        sides["en"].append(" ".join([f"{name}{number}", *words]))
        sides["de"].append(" ".join([f"{name}{number}", *reversed(words)]))
    for side, lines in sides.items():
        (folder / f"{name}.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ParallelCorpus(str(folder / name))


class Tiny(L.LightningModule):
    """Guesses target tokens from the mean source embedding, with dropout; notes all it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dropout, self.out = nn.Embedding(400, 8, padding_idx=0), nn.Dropout(0.3), nn.Linear(8, 400)
        self.losses: list[float] = []
        self.seen: list[tuple[int, ...]] = []
        self.steps_seen: list[list[tuple[int, ...]]] = []
        self.evaluated: list[int] = []

    def loss(self, batch):
        logits = self.out(self.dropout(self.embedding(batch.src).mean(1)))[:, None].expand(-1, batch.labels.size(1), -1)
        total = nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, ignore_index=0, reduction="sum")
        return total / batch.num_labels.clamp(min=1)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.log("loss", loss)
        self.steps_seen.append([tuple(row[row > 0].tolist()) for row in batch.tgt if row.any()])
        self.seen += self.steps_seen[-1]
        return loss

    def validation_step(self, batch, batch_idx):
        self.evaluated += batch.indices

    def test_step(self, batch, batch_idx):
        self.evaluated += batch.indices

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def make_data(folder: Path, rows: int = 230, **settings) -> TranslationDataModule:
    settings = {
        "vocab_size": 400,
        "max_tokens": 120,
        "pool_size": 64,
        "tokenizer_path": str(folder / "tok.json"),
    } | settings
    return TranslationDataModule(settings.pop("train", None) or write_corpus(folder, rows), **settings)


def make_trainer(folder: Path, **settings) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"num_sanity_val_steps": 0, "enable_checkpointing": "callbacks" in settings} | quiet | settings
    return L.Trainer(default_root_dir=folder, devices=1, **settings)


class Log(Logger):
    """Notes at which steps something is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    name = version = "log"

    def log_metrics(self, metrics, step=None):
        self.steps.append(step)

    def log_hyperparams(self, *args, **kwargs):
        pass


def run(folder: Path, into: str = "whole", ckpt_path=None, data=None, data_settings=None, **settings):
    """One training with a checkpoint of every step; returns module and data module."""
    saver = ModelCheckpoint(folder / into, "{step}", every_n_train_steps=1, save_top_k=-1)
    torch.manual_seed(0)
    module, data = Tiny(), data or make_data(folder, **(data_settings or {}))
    trainer = make_trainer(folder, callbacks=[saver], **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, data


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (0, 2)])
def test_endless_resume_is_exact(tmp_path, before, after):
    whole, _ = run(tmp_path, data_settings={"num_workers": before}, max_steps=30)
    once, _ = run(tmp_path, "once", tmp_path / "whole/step=7.ckpt", data_settings={"num_workers": after}, max_steps=19)
    twice, _ = run(tmp_path, "twice", tmp_path / "once/step=9.ckpt", data_settings={"num_workers": after}, max_steps=30)
    assert len(whole.losses) == 30
    assert once.losses == whole.losses[7:19]
    assert twice.losses == whole.losses[9:]
    assert same_weights(whole, twice)


def test_resume_is_exact_under_accumulation_and_validation_inside(tmp_path):
    val = write_corpus(tmp_path, 20, "val")
    settings = {"accumulate_grad_batches": 3, "val_check_interval": 4, "check_val_every_n_epoch": None, "max_steps": 10}
    whole, _ = run(tmp_path, data_settings={"val": val}, **settings)
    resumed, _ = run(tmp_path, "again", tmp_path / "whole/step=4.ckpt", data_settings={"val": val}, **settings)
    assert len(whole.losses) == 30
    assert resumed.losses == whole.losses[12:]
    assert same_weights(whole, resumed)
    assert len(whole.evaluated) == 20 * 7


def test_steps_of_changing_size_are_refused(tmp_path):
    scheduler = L.pytorch.callbacks.GradientAccumulationScheduler({0: 2})
    trainer = make_trainer(tmp_path, callbacks=[scheduler], max_steps=3)
    with pytest.raises(InputError, match=r"^GradientAccumulationScheduler .* set trainer\.accumulate_grad_batches"):
        trainer.fit(module := Tiny(), make_data(tmp_path))
    assert module.losses == []


class Stop(L.Callback):
    """Raises once, in the midst of the training."""

    def __init__(self, at: int, kind: type[BaseException], where: str) -> None:
        self.at, self.kind, self.where = at, kind, where

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.where == "before" and trainer.fit_loop.total_batch_idx == self.at:
            raise self.kind("the power is gone")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.where == "after" and trainer.fit_loop.total_batch_idx == self.at:
            raise self.kind("the power is gone")

    def on_validation_end(self, trainer, pl_module):
        if self.where == "validation" and trainer.fit_loop.total_batch_idx >= self.at:
            raise self.kind("the power is gone")


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize(
    ("at", "where"), [(7, "before"), (7, "after"), (8, "before"), (12, "after"), (7, "validation"), (10, "validation")]
)
def test_checkpoint_of_an_interrupted_run_stands_on_a_whole_step(tmp_path, accumulate, at, where):
    settings = {"accumulate_grad_batches": accumulate, "log_every_n_steps": 1}
    settings |= {"max_steps": 18 // accumulate, "val_check_interval": 4, "check_val_every_n_epoch": None}
    data_settings = {"val": write_corpus(tmp_path, 5, "val")}
    whole, _ = run(tmp_path, logger=(whole_log := Log()), data_settings=data_settings, **settings)
    torch.manual_seed(0)
    saver = ModelCheckpoint(tmp_path / "stopped", "last", save_on_exception=True, every_n_train_steps=10**6)
    broken = make_trainer(tmp_path, callbacks=[saver, Stop(at, RuntimeError, where)], **settings)
    with pytest.raises(RuntimeError, match="the power is gone"):
        broken.fit(Tiny(), make_data(tmp_path, **data_settings))
    assert broken.global_step < settings["max_steps"]
    again, _ = run(
        tmp_path,
        "again",
        tmp_path / "stopped/last.ckpt",
        data_settings=data_settings,
        logger=(log := Log()),
        **settings,
    )
    assert again.losses == whole.losses[len(whole.losses) - len(again.losses) :]
    assert len(again.losses) == (settings["max_steps"] - broken.global_step) * accumulate
    assert same_weights(whole, again)
    assert log.steps == whole_log.steps[broken.global_step :]


class AskToStop(L.Callback):
    """Ends the training as ``max_time`` and ``EarlyStopping`` do."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or trainer.fit_loop.total_batch_idx + 1 == self.after


@pytest.mark.parametrize(
    ("accumulate", "validates", "ends"),
    [
        (1, False, {"max_epochs": 2}),
        (3, True, {"max_epochs": 2}),
        (3, False, {"max_steps": 8}),
        (3, True, {"max_steps": 8}),
    ],
)
def test_a_run_that_stops_between_micro_batches_goes_on_exactly(tmp_path, accumulate, validates, ends):
    settings = {"accumulate_grad_batches": accumulate, **ends}
    data_settings = {"val": write_corpus(tmp_path, 5, "val")} if validates else {}
    whole, _ = run(tmp_path, data_settings=data_settings, **settings)
    torch.manual_seed(0)
    saver = StepCheckpoint(tmp_path / "stopped", "{step}", every_n_train_steps=10**6)
    broken = make_trainer(tmp_path, callbacks=[saver, AskToStop(7)], **settings)
    broken.fit(Tiny(), make_data(tmp_path, **data_settings))
    assert broken.global_step == 7 // accumulate
    path = tmp_path / f"stopped/step={broken.global_step}.ckpt"
    again, _ = run(tmp_path, "again", path, data_settings=data_settings, **settings)
    assert again.losses == whole.losses[broken.global_step * accumulate :]
    assert same_weights(whole, again)


def test_resume_inside_a_pass_over_two_mixed_corpora(tmp_path):
    def data_settings():
        return {"train": [write_corpus(tmp_path, 150, "a"), write_corpus(tmp_path, 50, "b")]}

    whole, data = run(tmp_path, data_settings=data_settings(), max_epochs=2)
    assert Counter(Counter(whole.seen).values()) == {2: 200}  # two epochs: every sentence exactly twice
    steps = len(whole.losses)
    for stop in (3, steps // 2 + 3):
        resumed, _ = run(
            tmp_path, f"at{stop}", tmp_path / f"whole/step={stop}.ckpt", data_settings=data_settings(), max_epochs=2
        )
        assert resumed.losses == whole.losses[stop:]
        assert same_weights(whole, resumed)
    assert data.cursor == start_of(2)


def test_endless_epochs_show_every_sentence_once_and_differ_in_order(tmp_path):
    module, _ = run(tmp_path, max_steps=80)
    first, second = module.seen[:230], module.seen[230:460]
    assert set(first) == set(second)
    assert len(set(first)) == 230
    assert first != second


def test_dropout_depends_on_the_seed_of_the_data(tmp_path):
    one, _ = run(tmp_path, "one", max_steps=3, data_settings={"shuffle": False})
    same, _ = run(tmp_path, "same", max_steps=3, data_settings={"shuffle": False})
    other, _ = run(tmp_path, "other", max_steps=3, data_settings={"shuffle": False, "seed": 2})
    assert one.losses == same.losses
    assert one.seen == other.seen
    assert one.losses != other.losses


def test_declares_a_length_only_when_endless(tmp_path):
    data, trainer = make_data(tmp_path), make_trainer(tmp_path, max_steps=5, accumulate_grad_batches=2)
    trainer.fit(Tiny(), data)
    assert trainer.num_training_batches == 10
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(Tiny(), data)
    assert trainer.num_training_batches == float("inf")


def test_position_callback_stands_once_in_front(tmp_path):
    data = make_data(tmp_path)
    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[ModelCheckpoint(tmp_path)])
    trainer.fit(Tiny(), data)
    trainer.fit(Tiny(), data)
    assert [isinstance(callback, StreamPosition) for callback in trainer.callbacks] == [True, False]


def test_overfit_batches_repeats_the_same_batch(tmp_path):
    module = Tiny()
    make_trainer(tmp_path, max_epochs=3, overfit_batches=1).fit(module, make_data(tmp_path))
    third = len(module.seen) // 3
    assert module.seen[:third] == module.seen[third : 2 * third] == module.seen[2 * third :]


def test_checkpoint_holds_plain_data_and_the_tokenizer(tmp_path):
    _, data = run(tmp_path, max_steps=2)
    saved = torch.load(tmp_path / "whole/step=2.ckpt", weights_only=True)["TranslationDataModule"]
    assert saved["cursor"] == data.cursor
    assert SubwordTokenizer.from_state(saved["tokenizer"]).fingerprint == data.tokenizer.fingerprint
    json.dumps(saved)  # nothing but plain data


def test_checkpoint_tokenizer_serves_where_no_file_is(tmp_path):
    _, data = run(tmp_path, max_steps=2)
    fresh = TranslationDataModule(predict=write_corpus(tmp_path, 9, "p"), vocab_size=400)
    elsewhere = tmp_path / "elsewhere"
    trainer = make_trainer(elsewhere)
    trainer.predict(Tiny(), fresh, ckpt_path=tmp_path / "whole/step=2.ckpt", weights_only=True)
    assert fresh.tokenizer.fingerprint == data.tokenizer.fingerprint
    assert not (elsewhere / "tokenizer.json").exists()


def test_a_stray_tokenizer_does_not_stand_in_the_way_of_a_checkpoint(tmp_path):
    _, data = run(tmp_path, max_steps=2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = SubwordTokenizer(vocab_size=300)
    other.train(write_corpus(tmp_path, 50, "other"))
    other.save(tmp_path / "other.json")
    for stray in ('{"version": "1.0", "model": {}}', (tmp_path / "other.json").read_text(encoding="utf-8")):
        (elsewhere / "tokenizer.json").write_text(stray, encoding="utf-8")
        fresh = TranslationDataModule(predict=write_corpus(tmp_path, 9, "p"), vocab_size=400)
        make_trainer(elsewhere).predict(Tiny(), fresh, ckpt_path=tmp_path / "whole/step=2.ckpt", weights_only=True)
        assert fresh.tokenizer.fingerprint == data.tokenizer.fingerprint
    named = TranslationDataModule(
        predict=write_corpus(tmp_path, 9, "p"), vocab_size=400, tokenizer_path=str(elsewhere / "tokenizer.json")
    )
    with pytest.raises(CorpusError, match="vocab_size=300"):
        make_trainer(elsewhere).predict(Tiny(), named, ckpt_path=tmp_path / "whole/step=2.ckpt", weights_only=True)


def test_the_trainer_serves_other_data_afterwards(tmp_path):
    module, data = Tiny(), make_data(tmp_path)
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(module, data)
    trainer.fit_loop.epoch_loop.max_steps = 4

    class Plain(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer.fit(Plain(), torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=1))
    assert trainer.global_step == 4
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    progress = torch.load(tmp_path / "plain.ckpt", weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["current"]["completed"] == trainer.fit_loop.epoch_loop.batch_progress.current.completed > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 100}, "max_tokens was 120 and is 100"),
        ({"seed": 3}, "seed was 1 and is 3"),
        ({"rows": 231}, "the training text is not the same"),
    ],
)
def test_refuses_to_resume_a_changed_stream(tmp_path, change, message):
    run(tmp_path, max_steps=2)
    with pytest.raises(CorpusError, match=message):
        run(tmp_path, "again", tmp_path / "whole/step=2.ckpt", data_settings=change, max_steps=4)


def test_resume_allows_moved_files_and_other_workers(tmp_path):
    whole, _ = run(tmp_path, max_steps=6)
    moved = tmp_path / "moved"
    moved.mkdir()
    corpus = write_corpus(moved, 230)
    resumed, _ = run(tmp_path, "again", tmp_path / "whole/step=2.ckpt", data_settings={"train": corpus}, max_steps=6)
    assert resumed.losses == whole.losses[2:]


def test_refuses_a_given_tokenizer_that_is_not_the_checkpoints(tmp_path):
    run(tmp_path, max_steps=2)
    other = SubwordTokenizer(vocab_size=400)
    other.train(ParallelCorpus(str(tmp_path / "train"), max_rows=50))
    data = make_data(tmp_path, tokenizer=other, tokenizer_path=None)
    with pytest.raises(CorpusError, match="not the one that the checkpoint was trained with"):
        run(tmp_path, "again", tmp_path / "whole/step=2.ckpt", data=data, max_steps=4)


def test_evaluation_sees_every_sentence_with_text_and_index(tmp_path):
    texts = {"en": ["a b c", "", " ".join(["Hund"] * 60), "rot"], "de": ["c b a", "leer", "", "blau"]}
    for side, lines in texts.items():
        (tmp_path / f"odd.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    make_trainer(tmp_path, max_steps=1).fit(Tiny(), make_data(tmp_path))
    data = make_data(
        tmp_path,
        predict=[write_corpus(tmp_path, 30, "p"), ParallelCorpus(str(tmp_path / "odd"), tgt=None)],
        test=[write_corpus(tmp_path, 30, "p"), ParallelCorpus(str(tmp_path / "odd"))],
        max_length=20,
        pool_size=16,
    )
    batches = make_trainer(tmp_path).predict(Tiny(), data)
    by_index = {index: (batch, row) for batch in batches for row, index in enumerate(batch.indices)}
    assert sorted(by_index) == list(range(34))
    assert sum(map(len, batches)) == 34
    assert [by_index[30 + number][0].sources[by_index[30 + number][1]] for number in range(4)] == texts["en"]
    empty, row = by_index[31]
    assert empty.src[row].tolist()[:1] == [3]
    assert (empty.src[row][1:] == 0).all()
    long, row = by_index[32]
    assert len(long.src[row].nonzero()) == 20
    assert all(batch.tgt.shape == (len(batch), 0) for batch in batches)
    module = Tiny()
    make_trainer(tmp_path).test(module, data, verbose=False)
    assert sorted(module.evaluated) == list(range(34))


def test_cut_sentences_are_reported(tmp_path, caplog):
    data = make_data(tmp_path, val=write_corpus(tmp_path, 10, "val"), max_length=5)
    with caplog.at_level(logging.WARNING, logger="lit_transformer"):
        make_trainer(tmp_path, max_steps=2, val_check_interval=1).fit(Tiny(), data)
    assert sum("cut to max_length=5 tokens" in record.message for record in caplog.records) == 2  # source and target


def test_dropped_rows_are_counted_by_reason(tmp_path, caplog):
    class Picky(ParallelCorpus):
        def read_row(self, row):
            pair = super().read_row(row)
            return None if pair.src == "no" else pair

    (tmp_path / "bad.en").write_text("no\nno\na b\n\na\n" + "Hund " * 99 + "\n" + "rot\n" * 8)
    (tmp_path / "bad.de").write_text("x\nx\n\na\n" + "a " * 15 + "\nHund\n" + "blau\n" * 8)
    data = make_data(tmp_path, train=Picky(str(tmp_path / "bad")), max_length=40, max_length_ratio=3)
    with caplog.at_level(logging.INFO, logger="lit_transformer.data.datamodule"):
        make_trainer(tmp_path, max_epochs=1).fit(module := Tiny(), data)
    assert data.dropped == {"rejected": 2, "empty": 2, "ratio": 1, "overlong": 1}
    assert len(module.seen) == 8
    so_far = "2 empty, 2 rejected, 1 overlong, 1 ratio"
    assert f"epoch 0, pool 0: left out 6 rows; so far {so_far}" in caplog.messages


def write_table(folder, rows=90):
    """Sentences of which some are no pairs at all; the 8th row is the first of them."""
    bad = [{"en": "only English"}, {"en": 5, "de": "five"}, {"en": None, "de": "nothing"}, {"en": " ", "de": "blank"}]
    lines = [bad[n // 9 % 4] if n % 9 == 7 else {"en": f"row {n}", "de": f"Zeile {n}"} for n in range(rows)]
    return MemoryCorpus(lines)


def test_bad_rows_are_left_out_and_counted(tmp_path):
    data = make_data(tmp_path, train=write_table(tmp_path), pool_size=20)
    make_trainer(tmp_path, max_epochs=1).fit(module := Tiny(), data)
    assert data.dropped == {"missing column": 3, "not text": 3, "empty": 4}
    assert len(module.seen) == 80


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_stops_the_run_if_asked(tmp_path, workers):
    make_trainer(tmp_path, max_epochs=1).fit(Tiny(), make_data(tmp_path, train=write_table(tmp_path)))
    data = make_data(tmp_path, train=write_table(tmp_path), on_bad_row="error", num_workers=workers)
    message = r"^row 8 cannot be used: MemoryCorpus\(text in memory, en-de\) has no column 'de'.*on_bad_row: skip"
    with pytest.raises(CorpusError, match=message):
        make_trainer(tmp_path, max_epochs=1).fit(Tiny(), data)


@pytest.mark.parametrize("lanes", [1, 3])
def test_rows_are_numbered_in_the_corpus_also_in_lanes(tmp_path, lanes):
    rows = MixedRows([write_corpus(tmp_path, 1000)], 250, lanes, Mixing([1.0]))
    for lane in range(lanes):
        for part in (part for _, parts in rows.pools(lane_start(), lane) for part in parts):
            assert part.lane is None
            assert [row["en"].split()[0] for row in part.rows] == [
                f"train{number - 1}" for number in range(part.first, part.first + len(part.rows))
            ]


def test_a_wrong_column_is_an_error_at_once_though_bad_rows_are_skipped(tmp_path):
    make_trainer(tmp_path, max_epochs=1).fit(Tiny(), make_data(tmp_path))
    wrong = write_table(tmp_path)
    wrong.src = "english"
    data = make_data(tmp_path, train=[write_corpus(tmp_path, 230), wrong])
    with pytest.raises(CorpusError, match="has no column 'english', there are en, de"):
        make_trainer(tmp_path, max_epochs=1).fit(Tiny(), data)


def test_counts_go_on_after_a_resume(tmp_path):
    def data_settings():
        return {"train": write_table(tmp_path), "pool_size": 20}

    steps = len(run(tmp_path, data_settings=data_settings(), max_epochs=2)[0].losses)
    _, whole = run(tmp_path, data_settings=data_settings(), max_epochs=2)
    assert whole.dropped == {"missing column": 6, "not text": 6, "empty": 8}
    for stop in (1, steps // 2, steps - 1):
        checkpoint = tmp_path / f"whole/step={stop}.ckpt"
        saved = torch.load(checkpoint, weights_only=True)["TranslationDataModule"]["dropped"]
        assert sum(saved.values()) < 20 or stop > steps // 2
        _, resumed = run(tmp_path, f"at{stop}", checkpoint, data_settings=data_settings(), max_epochs=2)
        assert resumed.dropped == whole.dropped


def test_mixing_in_other_shares_repeats_small_corpora_and_resumes_exactly(tmp_path):
    def data_settings():
        return {"train": [write_corpus(tmp_path, 150, "a"), write_corpus(tmp_path, 20, "b")], "temperature": 100.0}

    whole, data = run(tmp_path, data_settings=data_settings(), max_epochs=1)
    a, b = ({ids for ids in whole.seen if data.tokenizer.decode(ids).startswith(name)} for name in "ab")
    times = Counter(whole.seen)
    assert (len(a), len(b)) == (150, 20)
    assert {times[ids] for ids in a} == {1}
    assert {times[ids] for ids in b} <= {7, 8}
    stop = len(whole.losses) // 2
    checkpoint = tmp_path / f"whole/step={stop}.ckpt"
    resumed, _ = run(tmp_path, "again", checkpoint, data_settings=data_settings(), max_epochs=1)
    assert resumed.losses == whole.losses[stop:]
    with pytest.raises(CorpusError, match=r"temperature was 100.0 and is 2.0"):
        run(tmp_path, "other", checkpoint, data_settings=data_settings() | {"temperature": 2.0}, max_epochs=1)


def test_tags_of_the_corpora_become_tokens(tmp_path, caplog):
    there, back = write_corpus(tmp_path, 60), write_corpus(tmp_path, 60)
    there.src_tag, back.src_tag, back.src, back.tgt = "<2de>", "<2en>", "de", "en"
    data = make_data(tmp_path, train=[there, back], test=back)
    make_trainer(tmp_path, max_epochs=1).fit(Tiny(), data)
    assert data.tokenizer.tags == ["<2de>", "<2en>"]
    batch = next(iter(data.train_dataloader()))
    first = {data.tokenizer.pieces_src(row[:1].tolist())[0] for row in batch.src}
    assert first <= {"<2de>", "<2en>"}
    evaluated = next(iter(data.test_dataloader()))
    assert evaluated.sources[0].startswith("<2en> train")
    assert not evaluated.references[0].startswith("<")
    untagged = write_corpus(tmp_path, 60)
    for train, warnings in (([there, back], 1), ([], 1), ([there, back, untagged], 0)):
        caplog.clear()
        tagged = make_data(tmp_path, test=[back, untagged])
        tagged.corpora["train"] = train
        make_trainer(tmp_path).test(Tiny(), tagged, verbose=False)
        told = [record for record in caplog.records if "has no src_tag" in record.getMessage()]
        assert [record.levelname for record in told] == ["WARNING"] * warnings
    stranger = write_corpus(tmp_path, 60)
    stranger.src_tag = "<2fr>"
    with pytest.raises(
        CorpusError, match=r"src_tag=<2fr>, which is none of the tags of the vocabulary \(<2de>, <2en>\)"
    ):
        make_trainer(tmp_path).test(Tiny(), make_data(tmp_path, train=None, test=stranger), verbose=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_left_is_an_error_not_an_endless_loop(tmp_path, workers):
    data = make_data(tmp_path, max_length=2, num_workers=workers)
    with pytest.raises(CorpusError, match="no sentence pair is left"):
        make_trainer(tmp_path, max_steps=5).fit(Tiny(), data)


def test_error_in_a_worker_stays_one_sentence(tmp_path):
    corpus = write_corpus(tmp_path, 300)
    with (tmp_path / "train.de").open("ab") as file:
        file.write(b"too much\n")
    data = make_data(tmp_path, train=corpus, num_workers=2, tokenizer_max_pairs=50)
    with pytest.raises(CorpusError, match=r"has 300 lines and .* has 301 lines") as caught:
        make_trainer(tmp_path, max_epochs=1).fit(Tiny(), data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be 0 or more"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"max_length": 300, "eval_max_tokens": 200}, "eval_max_tokens=200 cannot hold"),
        ({"max_length_ratio": 0.5}, "max_length_ratio must be at least 1"),
        ({"weights": [1.0, 2.0]}, "weights has 2 numbers for 1 training corpora: give one for each"),
        ({"tokenizer": SubwordTokenizer(vocab_size=500)}, "has vocab_size=500 and src_vocab_size=None .* 400 and None"),
        ({"tokenizer": SubwordTokenizer(joint=False)}, "has vocab_size=400 and src_vocab_size=400 .* 400 and None"),
    ],
)
def test_bad_arguments_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_data(tmp_path, **settings)


def test_recipe_takes_the_sizes_of_the_data_module(tmp_path):
    data = make_data(tmp_path, tokenizer=SubwordTokenizer("unigram", lowercase=True), src_vocab_size=350)
    make_trainer(tmp_path, max_steps=1).fit(Tiny(), data)
    tokenizer = data.tokenizer
    assert (tokenizer.recipe["model"], tokenizer.recipe["lowercase"], tokenizer.joint) == ("unigram", True, False)
    assert (tokenizer.vocab_size, tokenizer.src_vocab_size) == (400, 350)


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(CorpusError, match=r"tokenizer_path=.* does not exist, and only fit can make it"):
        make_trainer(tmp_path).test(Tiny(), make_data(tmp_path, test=write_corpus(tmp_path, 5, "t")), verbose=False)
    make_trainer(tmp_path, max_steps=1).fit(Tiny(), make_data(tmp_path))
    with pytest.raises(MisconfigurationException, match="no test corpus is given"):
        make_trainer(tmp_path).test(Tiny(), make_data(tmp_path), verbose=False)
    blind = ParallelCorpus(str(tmp_path / "train"), tgt=None)
    with pytest.raises(CorpusError, match="has no target side, which test needs"):
        make_trainer(tmp_path).test(Tiny(), make_data(tmp_path, test=blind), verbose=False)
    data = make_data(tmp_path, test=write_corpus(tmp_path, 5, "t"), tokenizer_path=None)
    with pytest.raises(MisconfigurationException, match="there is no tokenizer yet"):
        make_trainer(tmp_path / "empty").test(Tiny(), data, verbose=False)


def test_a_checkpoint_brings_the_tokenizer_where_its_file_is_gone(tmp_path):
    fit = make_trainer(tmp_path, max_steps=1)
    fit.fit(Tiny(), make_data(tmp_path))
    fit.save_checkpoint(tmp_path / "one.ckpt")
    data = make_data(tmp_path, test=write_corpus(tmp_path, 5, "t"))
    expected = SubwordTokenizer.load(tmp_path / "tok.json").fingerprint
    (tmp_path / "tok.json").unlink()
    make_trainer(tmp_path).test(Tiny(), data, ckpt_path=tmp_path / "one.ckpt", verbose=False, weights_only=True)
    assert data.tokenizer.fingerprint == expected


@pytest.mark.parametrize("part", ["train", "val"])
def test_text_without_targets_is_refused_before_any_is_read(tmp_path, part):
    corpora = {"train": write_corpus(tmp_path, 5), "val": write_corpus(tmp_path, 5, "val")}
    for corpus in corpora.values():
        corpus.rows = lambda *_: pytest.fail("the text was read")
    corpora[part].tgt = None
    with pytest.raises(CorpusError, match=rf"{part}, en\) has no target side, which {part} needs: set its tgt"):
        make_trainer(tmp_path, max_steps=1).fit(Tiny(), make_data(tmp_path, **corpora))


def test_default_tokenizer_file_is_reused_and_made_anew_for_other_text(tmp_path):
    def fingerprint(rows):
        data = make_data(tmp_path, rows, tokenizer_path=None)
        make_trainer(tmp_path, max_steps=1).fit(Tiny(), data)
        return data.tokenizer.fingerprint

    first = fingerprint(100)
    written = (tmp_path / "tokenizer.json").stat().st_mtime_ns
    assert fingerprint(100) == first
    assert (tmp_path / "tokenizer.json").stat().st_mtime_ns == written
    assert fingerprint(101) != first


def test_named_tokenizer_file_is_never_made_anew(tmp_path):
    make_trainer(tmp_path, max_steps=1).fit(Tiny(), make_data(tmp_path, 100))
    content = (tmp_path / "tok.json").read_bytes()
    make_trainer(tmp_path, max_steps=1).fit(Tiny(), make_data(tmp_path, 120))
    assert (tmp_path / "tok.json").read_bytes() == content
    data = make_data(tmp_path, 100, tokenizer=SubwordTokenizer("word", vocab_size=400))
    with pytest.raises(CorpusError, match="another recipe"):
        make_trainer(tmp_path, max_steps=1).fit(Tiny(), data)


DDP = """
import sys, warnings, json
warnings.filterwarnings("error")
warnings.filterwarnings("ignore", ".*LeafSpec.*")
warnings.filterwarnings("ignore", ".*unused_parameters.*|.*does not have many workers.*|This DataLoader will create.*")
sys.path.insert(0, sys.argv[1])
import torch, lightning as L
from pathlib import Path
from test_datamodule import Tiny, make_data, make_trainer, write_corpus

folder = Path(sys.argv[2])
data = make_data(folder, 211, train=write_corpus(folder, 211), test=write_corpus(folder, 31, "test"),
                 num_workers=int(sys.argv[3]), num_lanes=int(sys.argv[4]), cache_path=sys.argv[5] or None)
saver = L.pytorch.callbacks.ModelCheckpoint(folder / "two", "{step}", every_n_train_steps=1, save_top_k=-1)
trainer = L.Trainer(default_root_dir=folder, accelerator="cpu", strategy="ddp", devices=2, callbacks=[saver],
                    max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False)
module = Tiny()
trainer.fit(module, data)
trainer.test(module, data, verbose=False)
result = {"steps": len(module.losses), "seen": module.seen, "evaluated": module.evaluated, "cursor": data.cursor,
          "steps_seen": module.steps_seen}
(folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(result))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "lanes", "is_cached"), [(0, 1, False), (2, 1, False), (0, 4, False), (2, 1, True)])
def test_two_processes_share_every_sentence_once(tmp_path, workers, lanes, is_cached):
    cache_path = str(tmp_path / "text.arrow") if is_cached else None
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    command = [
        sys.executable,
        str(script),
        str(Path(__file__).parent),
        str(tmp_path),
        str(workers),
        str(lanes),
        cache_path or "",
    ]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["steps"] == second["steps"]
    seen = [tuple(ids) for ids in first["seen"] + second["seen"]]
    assert len(seen) == len(set(seen)) == 211
    assert sorted(first["evaluated"] + second["evaluated"]) == list(range(31))
    assert first["cursor"] == second["cursor"]
    for step in (3, first["steps"] - 1):  # one process goes on where the two stopped
        saved = torch.load(tmp_path / f"two/step={step}.ckpt", weights_only=True)["TranslationDataModule"]["cursor"]
        assert None not in saved["lanes"]
        alone = make_trainer(tmp_path, max_epochs=1)
        data = make_data(tmp_path, 211, num_lanes=lanes, cache_path=cache_path)
        alone.fit(module := Tiny(), data, ckpt_path=tmp_path / f"two/step={step}.ckpt")
        before = [tuple(ids) for rank in (first, second) for ids in itertools.chain(*rank["steps_seen"][:step])]
        assert sorted(before + module.seen) == sorted(seen)


@pytest.mark.parametrize("given", [[("a", "b")], {"en": ["a"]}, "train.en"], ids=["pairs", "columns", "name"])
def test_what_is_no_corpus_is_told(given: object) -> None:
    with pytest.raises(TypeError, match=r"train must be a ParallelCorpus or a list of them, got (tuple|dict|str)"):
        TranslationDataModule(train=given)  # type: ignore[arg-type]


# Without a Trainer


def targets(batches):
    return [batch.tgt.tolist() for batch in batches]


def alone(folder, **settings):
    data = make_data(folder, **settings)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize("settings", [{}, {"num_workers": 2}, {"num_lanes": 2}, {"cache_path": "cache"}])
def test_a_loop_of_ones_own_sees_the_batches_of_the_trainer(tmp_path, settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = make_data(tmp_path, **settings)
    make_trainer(tmp_path, max_epochs=2).fit(module := Tiny(), data)
    data = alone(tmp_path, **settings)
    epochs = [targets(data.train_dataloader()) for _ in range(2)]
    rows = [tuple(token for token in row if token) for epoch in epochs for batch in epoch for row in batch]
    assert rows == module.seen
    assert epochs[0] != epochs[1]


WAYS = [{}, {"num_workers": 2}, {"num_lanes": 2}, {"cache_path": "cache"}, {"bpe_dropout": 0.2}]


@pytest.mark.parametrize("is_loaded_first", [False, True])
@pytest.mark.parametrize(("done", "settings"), [(1, {}), ("all", {}), *((5, settings) for settings in WAYS)])
def test_a_loop_of_ones_own_goes_on_where_it_was(tmp_path, monkeypatch, done, settings, is_loaded_first):
    monkeypatch.chdir(tmp_path)
    data = alone(tmp_path, **settings)
    whole = [targets(data.train_dataloader()) for _ in range(2)]
    first = alone(tmp_path, **settings)
    done = len(whole[0]) if done == "all" else done
    batches = iter(first.train_dataloader())
    for _ in range(done):
        next(batches)
    second = make_data(tmp_path, **settings)
    if is_loaded_first:
        second.load_state_dict(first.state_dict())
    second.prepare_data()
    second.setup("fit")
    if not is_loaded_first:
        second.load_state_dict(first.state_dict())
    rest = whole[0][done:] or whole[1]
    assert targets(second.train_dataloader()) == rest


@pytest.mark.parametrize("limit", [{"max_epochs": 1}, {"max_steps": 3, "max_epochs": -1}])
def test_a_loop_of_ones_own_goes_on_behind_a_trainer(tmp_path, limit):
    whole = alone(tmp_path)
    rows = [row for _ in range(2) for batch in targets(whole.train_dataloader()) for row in batch]
    data = make_data(tmp_path, val=write_corpus(tmp_path, 40))
    trainer = make_trainer(tmp_path, limit_val_batches=0, **limit)
    trainer.fit(module := Tiny(), data)
    rest = [row for batch in targets(data.train_dataloader()) for row in batch]
    strip = [tuple(token for token in row if token) for row in rows]
    assert [tuple(token for token in row if token) for row in rest] == strip[len(module.seen) :][: len(rest)]
    assert len(rest) > 100
    before = data.state_dict()["cursor"]
    trainer.validate(module, data, verbose=False)
    assert data.state_dict()["cursor"] == before
    assert targets(data.train_dataloader())


def test_a_loop_of_ones_own_validates_and_keeps_its_tokenizer_in_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(tmp_path, 40)
    data = TranslationDataModule(corpus, val=corpus, test=corpus, vocab_size=300)
    data.prepare_data()
    for stage in ("fit", "validate", "test"):
        data.setup(stage)
    assert (tmp_path / "tokenizer.json").exists()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        found = {number: text for batch in loader for number, text in zip(batch.indices, batch.references, strict=True)}
        assert found == {number: pair.tgt for number, pair in enumerate(corpus)}


def test_several_processes_need_a_trainer(tmp_path, monkeypatch):
    data = alone(tmp_path)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(MisconfigurationException, match="only under a Trainer"):
        data.train_dataloader()


class CubicCost(TokenBudgetBatches):
    def cost(self, num_pairs, longest_src, longest_tgt):
        return num_pairs * max(longest_src, longest_tgt) ** 3


class Cubic(TranslationDataModule):
    def build_batches(self, max_tokens, shuffle):
        return CubicCost(max_tokens, shuffle)


def test_evaluation_leaves_nothing_out_however_batches_cost(tmp_path):
    write_corpus(tmp_path, 30)
    val = write_corpus(tmp_path, 30, "val")
    settings = {"vocab_size": 400, "max_tokens": 9000, "eval_max_tokens": 1000}
    settings["tokenizer_path"] = str(tmp_path / "tokenizer.json")
    data = Cubic(ParallelCorpus(str(tmp_path / "train")), val, **settings)
    data.setup("fit")
    assert sorted(number for batch in data.val_dataloader() for number in batch.indices) == list(range(30))


class LowerCase(SubwordTokenizer):
    def normalize(self, text):
        return super().normalize(text).lower()


def test_a_tokenizer_of_ones_own_comes_back_as_it_was(tmp_path):
    tokenizer = LowerCase(vocab_size=300)
    tokenizer.train([SentencePair("one TWO", "eins ZWEI")] * 3)
    ids = tokenizer.encode_src(["ONE two"])
    assert ids == SubwordTokenizer.from_state(tokenizer.to_state()).encode_src(["one two"]) != []
    tokenizer.save(tmp_path / "tokenizer.json")
    for found in (SubwordTokenizer.load(tmp_path / "tokenizer.json"), LowerCase.from_state(tokenizer.to_state())):
        assert type(found) is LowerCase
        assert found.encode_src(["ONE two"]) == ids
    state = {**tokenizer.to_state(), "class_path": "os.system"}
    with pytest.raises(InputError, match=r"'os.system' is not a SubwordTokenizer, so a checkpoint may not build it"):
        SubwordTokenizer.from_state(state)
    assert "class_path" not in SubwordTokenizer.load(tmp_path / "tokenizer.json").recipe


class Chosen(SubwordTokenizer):
    """Leaves a letter out, with a narrow constructor."""

    def __init__(self, letters: tuple[str, ...] = ("x",), vocab_size: int = 37_000):
        super().__init__(vocab_size=vocab_size)
        self.letters = letters

    def normalize(self, text):
        for letter in self.letters:
            text = text.replace(letter, "")
        return super().normalize(text)


class Passed(SubwordTokenizer):
    """Hands on all that it gets."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class OfItsOwn(SubwordTokenizer):
    def __init__(self, *letters, **kwargs):
        super().__init__(**kwargs)
        self.letters = letters


def test_arguments_of_an_own_tokenizer_come_back(tmp_path):
    write_corpus(tmp_path, 30)
    corpus, path = ParallelCorpus(str(tmp_path / "train")), tmp_path / "tokenizer.json"

    def trained(given):
        data = TranslationDataModule(corpus, tokenizer=given, tokenizer_path=str(path), vocab_size=400, max_tokens=400)
        data.prepare_data()
        return data.tokenizer

    tokenizer = trained(Chosen(("e",)))  # which takes the size of the data module
    assert (tokenizer.letters, tokenizer.vocab_size) == (["e"], 400)
    states = SubwordTokenizer.load(path), SubwordTokenizer.from_state(tokenizer.to_state())
    for found in (*states, trained(Chosen(("e",)))):
        assert type(found) is Chosen
        assert found.letters == ["e"]
        assert found.fingerprint == tokenizer.fingerprint
        assert found.encode_src(["seven"]) == tokenizer.encode_src(["svn"])
    for other in (Chosen(("a",)), SubwordTokenizer()):
        with pytest.raises(CorpusError, match=r"made by another recipe than tokenizer says"):
            trained(other)
    with pytest.raises(InputError, match=r"Chosen sets lowercase to False where True is needed; let its constructor"):
        Chosen.of_recipe({**tokenizer.recipe, "lowercase": True}, {})
    with pytest.raises(InputError, match=r"Chosen has arguments that no file can keep \(Object of type P.*Path "):
        Chosen((tmp_path,)).train([SentencePair("one", "eins")])
    with pytest.raises(InputError, match=r"Chosen has a dict whose keys are no strings"):
        Chosen({1: "x"}).train([SentencePair("one", "eins")])


def test_arguments_without_a_name_go_to_the_recipe(tmp_path):
    tokenizer = Passed("word", 300)
    tokenizer.train([SentencePair("one TWO", "eins ZWEI")] * 3)
    found = SubwordTokenizer.from_state(tokenizer.to_state())
    assert (type(found), found.recipe) == (Passed, tokenizer.recipe)
    assert found.encode_src(["one TWO"]) == tokenizer.encode_src(["one TWO"])
    with pytest.raises(InputError, match=r"OfItsOwn has arguments of its own without a name in \*args: give them by"):
        OfItsOwn("e").train([SentencePair("one TWO", "eins ZWEI")] * 3)


def test_the_vocabulary_of_another_class_is_not_reused(tmp_path):
    pairs, path = [SentencePair("one TWO", "eins ZWEI")] * 3, tmp_path / "tokenizer.json"
    kinds = [SubwordTokenizer, LowerCase, SubwordTokenizer]
    ids = []
    for kind in kinds:
        tokenizer = kind(vocab_size=300)
        tokenizer.train_or_load(path, lambda: pairs, "the same data")
        assert type(SubwordTokenizer.load(path)) is kind
        ids.append(tokenizer.encode_src(["ONE TWO"]))
    assert ids[0] == ids[2] != ids[1]


class CountsValidations(Tiny):
    validations = 0

    def on_validation_end(self):
        self.validations += 1


class Fails(Tiny):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("at the first batch")


class ValidatesOnItsOwn(TranslationDataModule):
    def val_dataloader(self):
        return self.train_dataloader()


def test_validation_without_text_leaves_the_trainer_as_it_was(tmp_path):
    write_corpus(tmp_path, 30)
    corpus = ParallelCorpus(str(tmp_path / "train"))
    settings = {"vocab_size": 400, "max_tokens": 400, "tokenizer_path": str(tmp_path / "tokenizer.json")}
    for data, validations in (
        (TranslationDataModule(corpus, **settings), 0),
        (TranslationDataModule(corpus, corpus, **settings), 1),
        (ValidatesOnItsOwn(corpus, **settings), 1),
    ):
        trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=3)
        module = CountsValidations()
        trainer.fit(module, data)
        assert trainer.limit_val_batches == 3
        assert module.validations == validations
    trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=3)
    with pytest.raises(RuntimeError, match="at the first batch"):
        trainer.fit(Fails(), TranslationDataModule(corpus, **settings))
    assert trainer.limit_val_batches == 3


def test_files_of_the_data_module_may_use_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    data = make_data(tmp_path, cache_path="$SCRATCH/tokens.arrow", tokenizer_path="$SCRATCH/tokenizer.json")
    data.prepare_data()
    data.setup("fit")
    assert {path.name for path in (tmp_path / "scratch").iterdir()} >= {"tokens.arrow", "tokenizer.json"}
