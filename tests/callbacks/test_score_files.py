"""The file of scores tells where its figures come from, and the figures can be computed again from its neighbours."""

import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
from standins import SENTENCES, TRANSLATIONS, Data, Module, trainer
from torchmetrics.text import CharErrorRate

from lit_transformer.callbacks import CheckpointAveraging, write_averaged_checkpoint
from lit_transformer.callbacks.bleu import BLEUEvaluation
from lit_transformer.callbacks.score_files import ScoreFiles, git_commit
from lit_transformer.interfaces import TranslationBatch
from lit_transformer.metrics import CorpusScore

REFERENCES = [target for _, target in SENTENCES]


def score(folder: Path, ckpt_path: Path | None = None, *callbacks: CheckpointAveraging) -> dict[str, object]:
    evaluation = BLEUEvaluation(output_path=folder / "test.hyp.txt", num_samples=0, metric=CharErrorRate())
    trainer(evaluation, *callbacks).test(Module(), Data(), ckpt_path=ckpt_path, verbose=False, weights_only=True)
    content: dict[str, object] = json.loads((folder / "test.scores.json").read_text(encoding="utf-8"))
    return content


def test_the_figures_can_be_computed_again_from_the_files(tmp_path: Path) -> None:
    content = score(tmp_path)
    assert (content["hypotheses"], content["references"]) == ("test.hyp.txt", "test.ref.txt")
    texts = [(tmp_path / name).read_text(encoding="utf-8").splitlines() for name in ("test.hyp.txt", "test.ref.txt")]
    assert texts == [TRANSLATIONS, REFERENCES]
    scores = content["scores"]
    assert isinstance(scores, dict)
    for name, scorer in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF()), ("ter", sacrebleu.TER())):
        expected = scorer.corpus_score(texts[0], [texts[1]], n_bootstrap=1000)
        assert scores[name]["value"] == pytest.approx(expected.score, abs=1e-9)
        assert scores[name]["signature"] == str(scorer.get_signature())
        interval = scores[name]["interval"]
        assert interval["level"] == 0.95
        assert (interval["high"] - interval["low"]) / 2 == pytest.approx(expected._ci, abs=1e-4)
        assert interval["mean"] == pytest.approx(expected._mean, abs=1e-4)
    assert scores["charerrorrate"] == {"value": pytest.approx(CharErrorRate()(*texts).item())}


def test_line_breaks_are_scored_as_they_are_written(tmp_path: Path) -> None:
    class Broken(Data):
        def test_dataloader(self) -> object:  # type: ignore[override]
            for batch in super().test_dataloader():
                batch.references = [text.replace(" ", " -\n") for text in batch.references]
                yield batch

    evaluation = BLEUEvaluation(output_path=tmp_path / "test.hyp.txt", num_samples=0)
    (result,) = trainer(evaluation).test(Module(), Broken(), verbose=False)
    references = (tmp_path / "test.ref.txt").read_text(encoding="utf-8").splitlines()
    assert len(references) == len(REFERENCES)
    assert result["test/bleu"] == pytest.approx(sacrebleu.corpus_bleu(TRANSLATIONS, [references]).score, abs=1e-6)


class Exact(CorpusScore):
    """The share of translations that are what people wrote: a score of one's own."""

    signature = "exact"

    def __init__(self) -> None:
        super().__init__(num_counts=2, name="exact")

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[list[int]]:
        return [[int(pair[0] == pair[1]), 1] for pair in zip(hypotheses, references, strict=True)]

    def score(self, counts: list[int]) -> float:
        return 100 * counts[0] / counts[1]


def test_a_score_of_ones_own_gets_an_interval(tmp_path: Path) -> None:
    evaluation = BLEUEvaluation(output_path=tmp_path / "out.txt", num_samples=0, metric=Exact())
    trainer(evaluation).test(Module(), Data(3), verbose=False)
    exact = json.loads((tmp_path / "out.scores.json").read_text(encoding="utf-8"))["scores"]["exact"]
    right = [int(one == other) for one, other in zip(TRANSLATIONS, REFERENCES, strict=True)]
    draws = np.random.default_rng(12345).choice(7, (1000, 7))
    drawn = np.sort(100 * np.array(right)[draws].mean(1))
    assert exact["value"] == pytest.approx(100 * sum(right) / 7)
    assert [exact["interval"][end] for end in ("low", "high", "mean")] == pytest.approx(
        [drawn[25], drawn[974], drawn.mean()]
    )
    assert exact["signature"] == "exact|bs:1000|seed:12345"


class Sections:
    """The batches of three corpora, of which the second has no sentence."""

    sections = (("films", 0), ("nothing", 4), ("talks", 4))

    def __init__(self, batches: Iterable[TranslationBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[TranslationBatch]:
        return iter(self.batches)


class Several(Data):
    def val_dataloader(self) -> Sections:  # type: ignore[override]
        return Sections(super().val_dataloader())

    test_dataloader = val_dataloader  # type: ignore[assignment]


def test_each_of_several_corpora_is_scored_as_sacrebleu_scores_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    evaluation = BLEUEvaluation(output_path=tmp_path / "test.hyp.txt", num_samples=0)
    trainer(evaluation).test(Module(), Several(), verbose=False)
    films, talks = json.loads((tmp_path / "test.scores.json").read_text(encoding="utf-8"))["corpora"]
    for found, name, part in ((films, "films", slice(0, 4)), (talks, "talks", slice(4, 7))):
        expected = sacrebleu.BLEU().corpus_score(TRANSLATIONS[part], [REFERENCES[part]], n_bootstrap=1000)
        assert (found["name"], found["num_sentences"]) == (name, len(REFERENCES[part]))
        bleu = found["scores"]["bleu"]
        assert bleu["value"] == pytest.approx(expected.score)
        assert (bleu["interval"]["high"] - bleu["interval"]["low"]) / 2 == pytest.approx(expected._ci, abs=1e-4)
        expected = sacrebleu.CHRF().corpus_score(TRANSLATIONS[part], [REFERENCES[part]])
        assert found["scores"]["chrf"]["value"] == pytest.approx(expected.score)
        line = next(line for line in caplog.text.splitlines() if line.startswith(name))
        assert line.split()[1:3] == [str(found["num_sentences"]), f"{bleu['value']:.2f}"]
    caplog.clear()
    trainer(evaluation).validate(Module(), Several(), verbose=False)
    assert "\ntalks" in caplog.text


def test_a_corpus_of_its_own_or_one_that_is_not_reached_needs_no_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    evaluation = BLEUEvaluation(output_path=tmp_path / "test.hyp.txt", num_samples=0)
    first = trainer(evaluation, limit_test_batches=1)
    first.test(Module(), Several(1), verbose=False)  # the longest sentence only, number 6
    content = json.loads((tmp_path / "test.scores.json").read_text(encoding="utf-8"))
    assert [(one["name"], one["num_sentences"]) for one in content["corpora"]] == [("talks", 1)]
    trainer(evaluation).test(Module(), Data(), verbose=False)
    assert json.loads((tmp_path / "test.scores.json").read_text(encoding="utf-8"))["corpora"] == []
    assert "sentences  " not in caplog.text


def test_it_tells_when_with_what_and_from_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    content = score(tmp_path)
    age = datetime.now(UTC) - datetime.fromisoformat(str(content["date"]))
    assert 0 <= age.total_seconds() < 600
    versions = content["versions"]
    assert isinstance(versions, dict)
    assert versions["sacrebleu"] == version("sacrebleu")
    assert versions["torch"] == torch.__version__
    assert versions.keys() == {"lit_transformer", "torch", "lightning", "sacrebleu", "tokenizers", "python"}
    assert content["seed"] == 17
    assert content["search"] == {
        "beam_size": 4,
        "length_penalty": 0.6,
        "penalty_kind": "gnmt",
        "stop_early": False,
        "max_extra_length": 50,
        "allow_unknown": True,
        "no_repeat_ngram_size": 0,
    }
    assert content["num_sentences"] == 7
    assert (content["device"], content["precision"]) == ("1 x cpu", "32-true")
    assert content["checkpoint"] == {"path": None, "step": 0, "averaged_from": {}}


def test_it_names_the_checkpoints_that_were_averaged(tmp_path: Path) -> None:
    fit = trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    fit.fit(Module(), Data())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    fit.fit_loop.max_epochs = 2
    fit.fit(Module(), Data(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    fit.save_checkpoint(tmp_path / "b.ckpt")
    last = str(tmp_path / "b.ckpt")
    assert score(tmp_path, tmp_path / "b.ckpt")["checkpoint"] == {"path": last, "step": 4, "averaged_from": {}}
    mean = score(tmp_path, tmp_path / "b.ckpt", CheckpointAveraging(2))["checkpoint"]
    assert mean == {"path": last, "step": 4, "averaged_from": {str(tmp_path / "a.ckpt"): 2, last: 4}}
    write_averaged_checkpoint([tmp_path / "a.ckpt", tmp_path / "b.ckpt"], tmp_path / "mean.ckpt")
    mean = score(tmp_path, tmp_path / "mean.ckpt", CheckpointAveraging(2))["checkpoint"]
    assert mean == {"path": str(tmp_path / "mean.ckpt"), "step": 4, "averaged_from": {"a.ckpt": 2, "b.ckpt": 4}}


def test_the_commit_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None  # no repository
    git = ("git", "-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run([*git, "init", "-q"], check=True)
    assert git_commit() is None  # no commit
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit() == commit
    subprocess.run([*git, "tag", "v1"], check=True)
    assert git_commit() == commit
    (tmp_path / "file").write_text("two")
    assert git_commit() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None  # no git


@pytest.mark.parametrize(
    ("output", "references", "scores"),
    [
        ("run/test.hyp.txt", "run/test.ref.txt", "run/test.scores.json"),
        ("out.txt", "out.ref.txt", "out.scores.json"),
        ("news2014.de", "news2014.ref.txt", "news2014.scores.json"),
        ("plain", "plain.ref.txt", "plain.scores.json"),
    ],
)
def test_names_of_the_files(output: str, references: str, scores: str) -> None:
    assert ScoreFiles.beside(Path(output)) == (Path(output), Path(references), Path(scores))
