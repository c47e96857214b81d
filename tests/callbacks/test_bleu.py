"""BLEUEvaluation logs sacrebleu's scores of what the module translates."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import sacrebleu
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.strategies import FSDPStrategy
from standins import SENTENCES, TRANSLATIONS, Batches, Data, Module, trainer
from torch.utils.data import DataLoader
from torchmetrics.text import CharErrorRate, SacreBLEUScore
from torchmetrics.text.rouge import ROUGEScore

from lit_transformer.callbacks.bleu import BLEUEvaluation
from lit_transformer.class_paths import class_path_of
from lit_transformer.interfaces import Hypothesis, InputError, Search
from lit_transformer.metrics import CorpusBLEU, CorpusTER, MosesBLEU
from lit_transformer.module import LitTransformer
from lit_transformer.nn import Transformer

REFERENCES = [target for _, target in SENTENCES]
BLEU = sacrebleu.corpus_bleu(TRANSLATIONS, [REFERENCES]).score
CHRF = sacrebleu.corpus_chrf(TRANSLATIONS, [REFERENCES]).score
TER = sacrebleu.corpus_ter(TRANSLATIONS, [REFERENCES]).score


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_scores_of_test_equal_sacrebleu(batch_size: int) -> None:
    (result,) = trainer(BLEUEvaluation()).test(Module(), Data(batch_size), verbose=False)
    assert 5 < BLEU < 95
    assert result == pytest.approx({"test/bleu": BLEU, "test/chrf": CHRF, "test/ter": TER}, abs=1e-6)


def test_validation_scores_can_be_monitored_and_kept(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="best", monitor="val/bleu", mode="max")
    evaluation = BLEUEvaluation(tokenize="char", num_samples=0)
    fit = trainer(evaluation, saver, max_epochs=2, enable_checkpointing=True)
    fit.fit(Module(), Data(), weights_only=True)
    expected = sacrebleu.corpus_bleu(TRANSLATIONS, [REFERENCES], tokenize="char").score
    assert fit.callback_metrics["val/bleu"].item() == pytest.approx(expected)
    assert saver.best_model_score == pytest.approx(expected)
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)["callbacks"]["BLEUEvaluation"]
    assert kept["scores"] == pytest.approx({"val/bleu": expected, "val/chrf": CHRF})
    assert "|tok:char|" in kept["signatures"]["bleu"]
    assert evaluation.signatures == kept["signatures"]


def test_samples_are_the_first_sentences_with_their_text(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(BLEUEvaluation(num_samples=2)).test(Module(), Data(), verbose=False)
    assert capsys.readouterr().out == (
        "\nsentence 0\n"
        "  source       the cat sat on the mat\n"
        "  reference    die Katze saß auf der Matte\n"
        "  translation  die Katze saß auf einer Matte\n"
        "\nsentence 1\n"
        "  source       a dog runs in the park\n"
        "  reference    ein Hund läuft im Park\n"
        "  translation  ein Hund läuft in dem Park\n\n"
    )


@pytest.mark.parametrize("rich", [False, True])
def test_samples_pass_by_the_progress_bar(capsys: pytest.CaptureFixture[str], rich: bool) -> None:
    bar: L.Callback = RichProgressBar() if rich else TQDMProgressBar()
    test = trainer(BLEUEvaluation(num_samples=5), bar, enable_progress_bar=True)
    test.test(Module(), Data(), verbose=False)
    assert "she reads a [b]book[/b]" in capsys.readouterr().out


def test_signatures_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trainer(BLEUEvaluation(num_samples=0), max_epochs=1).fit(Module(), Data())
    assert f"val/bleu {BLEU:.2f} ({CorpusBLEU().signature})" in caplog.text
    assert "val/ter" not in caplog.text  # too slow for in between


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize(("command", "stage"), [("test", "test"), ("validate", "val")])
def test_scores_are_told_with_sacrebleus_intervals(
    command: str, stage: str, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    scorers = {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF(), "ter": sacrebleu.TER()}
    with caplog.at_level("INFO"):
        getattr(trainer(BLEUEvaluation()), command)(Module(), Data(batch_size), verbose=False)
    for name, scorer in scorers.items():
        expected = scorer.corpus_score(TRANSLATIONS, [REFERENCES], n_bootstrap=1000)
        told = re.search(rf"{stage}/{name} ([\d.]+), 95 % interval ([\d.]+) to ([\d.]+) \((.*)\)", caplog.text)
        assert told, name
        value, low, high = (float(number) for number in told.groups()[:3])
        assert value == pytest.approx(expected.score, abs=0.006)
        assert (high - low) / 2 == pytest.approx(expected._ci, abs=0.011)
        assert told.group(4) == str(scorer.get_signature())


def test_sanity_check_translates_one_sentence_and_scores_nothing() -> None:
    seen: list[list[int]] = []
    spy = LambdaCallback(on_sanity_check_end=lambda _, module: seen.append(list(module.generated)))
    module, evaluation = Module(), BLEUEvaluation(num_samples=0)
    trainer(evaluation, spy, max_epochs=1, num_sanity_val_steps=2).fit(module, Data())
    assert seen == [[1]]
    assert evaluation.num_validations == 1
    assert sum(module.generated) == 1 + len(SENTENCES)


def test_every_second_validation_also_after_a_resume(tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: str | None = None) -> int:
        module = Module()
        evaluation = BLEUEvaluation(every_n_validations=2, num_samples=0)
        fit = trainer(evaluation, max_epochs=epochs, num_sanity_val_steps=0)
        fit.fit(module, Data(), ckpt_path=ckpt_path, weights_only=True)
        fit.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return sum(module.generated)

    assert run(1) == 0
    assert run(3, str(tmp_path / "1.ckpt")) == len(SENTENCES)  # the second of three


def test_never_in_training_but_always_when_asked() -> None:
    module, evaluation = Module(), BLEUEvaluation(every_n_validations=0, num_samples=0)
    trainer(evaluation, max_epochs=2).fit(module, Data())
    assert module.generated == []
    (result,) = trainer(evaluation).validate(module, Data(), verbose=False)
    assert result["val/bleu"] == pytest.approx(BLEU)


def test_a_further_metric_and_one_in_place_of_bleu() -> None:
    test = trainer(BLEUEvaluation(metric=CharErrorRate(), num_samples=0))
    (result,) = test.test(Module(), Data(), verbose=False)
    expected = CharErrorRate()(TRANSLATIONS, REFERENCES).item()
    assert result["test/charerrorrate"] == pytest.approx(expected)
    assert result["test/bleu"] == pytest.approx(BLEU)

    (result,) = trainer(BLEUEvaluation(metric=CorpusBLEU(lowercase=True))).test(Module(), Data(), verbose=False)
    assert result["test/bleu"] == pytest.approx(sacrebleu.corpus_bleu(TRANSLATIONS, [REFERENCES], lowercase=True).score)


def test_several_further_metrics() -> None:
    further = [CorpusBLEU("none", lowercase=True, name="multi30k"), MosesBLEU("de"), CorpusTER(name="ter")]
    fit = trainer(BLEUEvaluation(metric=further, num_samples=0), max_epochs=1)
    fit.fit(Module(), Data())
    names = {name for name in fit.callback_metrics if name.startswith("val/")}
    assert names == {"val/bleu", "val/chrf", "val/multi30k", "val/moses_bleu", "val/ter"}  # TER where it is asked for
    assert fit.callback_metrics["val/ter"].item() == pytest.approx(TER)
    tokenised = sacrebleu.corpus_bleu(TRANSLATIONS, [REFERENCES], tokenize="none", lowercase=True, force=True).score
    assert fit.callback_metrics["val/multi30k"].item() == pytest.approx(tokenised)
    with pytest.raises(ValueError, match="two metrics are named 'moses_bleu'"):
        BLEUEvaluation(metric=[MosesBLEU("de"), MosesBLEU("de", split_hyphens=True)])


def test_translations_are_written_in_the_order_of_the_corpus(tmp_path: Path) -> None:
    output = tmp_path / "new" / "test.de"
    trainer(BLEUEvaluation(output_path=output)).test(Module(), Data(), verbose=False)
    assert output.read_text(encoding="utf-8").split("\n") == [*TRANSLATIONS, ""]
    assert (output.parent / "test.ref.txt").read_text(encoding="utf-8").split("\n") == [*REFERENCES, ""]
    assert {path.name for path in output.parent.iterdir()} == {"test.de", "test.ref.txt", "test.scores.json"}


@pytest.mark.parametrize("name", ["sources", "references"])
def test_batches_without_lines_are_refused(tmp_path: Path, name: str) -> None:
    class Bare(Data):
        def test_dataloader(self) -> Any:
            batches = [replace(batch, **{name: []}) for batch in Batches(3, 0, 1)]
            return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    with pytest.raises(MisconfigurationException, match=rf"scores text, but a batch of 3 sentences has 0 {name}"):
        trainer(BLEUEvaluation(output_path=tmp_path / "out")).test(Module(), datamodule=Bare(), verbose=False)


def test_a_source_without_text_has_an_empty_translation(tmp_path: Path) -> None:
    class Blank(Data):
        def test_dataloader(self) -> Any:
            batches = [replace(batch, sources=[" "] * len(batch)) for batch in Batches(3, 0, 1)]
            return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    trainer(BLEUEvaluation(output_path=tmp_path / "out")).test(Module(), datamodule=Blank(), verbose=False)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "\n" * len(TRANSLATIONS)


def test_a_broken_run_leaves_nothing(tmp_path: Path) -> None:
    class Broken(Module):
        def test_step(self, batch: object, batch_idx: int) -> None:
            if batch_idx:
                raise RuntimeError("out of coffee")

    with pytest.raises(RuntimeError, match="out of coffee"):
        trainer(BLEUEvaluation(output_path=tmp_path / "test.de")).test(Broken(), Data(), verbose=False)
    assert list(tmp_path.iterdir()) == []


def test_search_arguments_reach_the_search() -> None:
    search = BLEUEvaluation(beam_size=2, length_penalty=1.5, max_extra_length=7).search
    assert (search.beam_size, search.length_penalty, search.max_extra_length) == (2, 1.5, 7)
    assert (search.penalty_kind, BLEUEvaluation(penalty_kind="power").search.penalty_kind) == ("gnmt", "power")
    assert (search.allow_unknown, BLEUEvaluation(allow_unknown=False).search.allow_unknown) == (True, False)
    assert (search.no_repeat_ngram_size, BLEUEvaluation(no_repeat_ngram_size=3).search.no_repeat_ngram_size) == (0, 3)
    assert (search.stop_early, BLEUEvaluation(stop_early=True).search.stop_early) == (False, True)


def test_bad_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 0, got -1 and 1"):
        BLEUEvaluation(num_samples=-1)
    with pytest.raises(ValueError, match="tokenize must be one of"):
        BLEUEvaluation(tokenize="words")
    data = Data()
    data.tokenizer = None  # type: ignore[assignment]
    with pytest.raises(MisconfigurationException, match="no data module with one"):
        trainer(BLEUEvaluation()).test(Module(), data, verbose=False)

    class Two(Data):
        def test_dataloader(self) -> object:  # type: ignore[override]
            return [self.val_dataloader(), self.val_dataloader()]

    class Taking(Module):
        def test_step(self, batch: object, batch_idx: int, dataloader_idx: int) -> None: ...  # type: ignore[override]

    with pytest.raises(MisconfigurationException, match="got several dataloaders"):
        trainer(BLEUEvaluation()).test(Taking(), Two(), verbose=False)

    test = trainer(BLEUEvaluation())
    monkeypatch.setattr(type(test), "world_size", 2)
    monkeypatch.setattr(type(test), "strategy", FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(InputError, match="cannot translate with weights that are sharded"):
        BLEUEvaluation().on_test_epoch_start(test, Module())


def test_the_search_of_the_module_is_what_is_scored(tmp_path: Path) -> None:
    class Silent(Search):
        def __call__(self, network: Any, src: torch.Tensor) -> list[list[Hypothesis]]:
            return [[Hypothesis([], 0.0, 0.0)] for _ in src]

    class Searching(Module):
        has_own_search = False
        search = Silent()

        def generate(self, src: torch.Tensor, search: Search | None = None) -> Any:
            return super().generate(src) if search is not self.search else search(self, src)  # type: ignore[arg-type]

    evaluation = BLEUEvaluation(output_path=tmp_path / "hyp.txt")
    module = Searching()
    for has_own_search, expected, told in (
        (False, BLEU, {"beam_size": 4}),
        (True, 0.0, {"class_path": class_path_of(Silent)}),
    ):
        module.has_own_search = has_own_search
        (result,) = trainer(evaluation).test(module, Data(), verbose=False)
        assert result["test/bleu"] == pytest.approx(expected, abs=1e-6)
        assert told.items() <= json.loads((tmp_path / "hyp.scores.json").read_text())["search"].items()
    assert (tmp_path / "hyp.txt").read_text() == "\n" * len(SENTENCES)
    lit = LitTransformer(Transformer(vocab_size=16, num_layers=1, d_model=8, d_ff=8, num_heads=2), search=Silent())
    assert evaluation.search_of(lit) is lit.search


def test_metrics_of_torchmetrics_with_several_references_or_numbers(tmp_path: Path) -> None:
    several = ROUGEScore(rouge_keys=("rouge1", "rougeL"), accumulate="avg")
    evaluation = BLEUEvaluation(metric=[several, SacreBLEUScore()], output_path=tmp_path / "x.txt", num_samples=0)
    (result,) = trainer(evaluation).test(Module(), Data(), verbose=False)
    assert result["test/sacrebleuscore"] * 100 == pytest.approx(BLEU, abs=1e-3)
    expected = ROUGEScore(rouge_keys=("rouge1", "rougeL"))(TRANSLATIONS, REFERENCES)
    for name in ("rouge1_fmeasure", "rougeL_recall"):
        assert result[f"test/rougescore_{name}"] == pytest.approx(float(expected[name]), abs=1e-6)
        assert json.loads((tmp_path / "x.scores.json").read_text())["scores"][f"rougescore_{name}"]
