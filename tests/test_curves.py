"""Learning curves: read from the logs of real and of made-up runs, and drawn."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from command_line import lit
from tiny_run import sentences, write_pairs
from tiny_run import tiny_run as tiny_run

from lit_transformer.curves import plot_curves, read_curves
from lit_transformer.interfaces import InputError

CONFIG = """
model: {{network: {{num_layers: 1, d_model: 16, d_ff: 32, num_heads: 2}}}}
data:
  train: {{path: {folder}/train, src: en, tgt: de}}
  val: {{path: {folder}/val, src: en, tgt: de}}
  vocab_size: 300
  max_tokens: 128
bleu: {{every_n_validations: 0, beam_size: 1, max_extra_length: 2}}
averaging: {{num_checkpoints: 1}}
trainer:
  accelerator: cpu
  max_steps: 4
  val_check_interval: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  default_root_dir: {folder}/run
"""


def write_log(run: Path, version: int, rows: list[dict[str, object]]) -> Path:
    folder = run / "logs" / f"version_{version}"
    folder.mkdir(parents=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was resumed at step 3, with a tenth start that repeats step 4."""
    first = [{"step": 0, "train/loss": 5.0}, {"step": 2, "train/loss": 4.0}, {"step": 3, "train/loss": 9.0}]
    later = [{"step": 3, "train/loss": 3.0}, {"step": 3, "val/loss": 3.5, "val/bleu": 20.25}]
    return write_log(write_log(tmp_path / "run", 2, first), 10, later)


def test_steps_count_from_one_and_later_starts_win(run: Path) -> None:
    curves = read_curves(run)
    assert curves == {"train/loss": {1: 5.0, 3: 4.0, 4: 3.0}, "val/loss": {4: 3.5}, "val/bleu": {4: 20.25}}
    assert read_curves(run / "logs" / "version_10" / "metrics.csv")["train/loss"] == {4: 3.0}


def test_the_diagrams_show_the_logged_values(run: Path) -> None:
    figure = plot_curves({"run": read_curves(run)})
    loss, scores = figure.axes  # no perplexity was logged
    assert [loss.get_title(), scores.get_title()] == ["loss per token", "scores of translations"]
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines}
    assert drawn["val/loss"] == ([4], [3.5])
    assert ([1, 3, 4], [5.0, 4.0, 3.0]) in drawn.values()
    assert drawn["train/loss"] == ([1, 3, 4], [4.5, 4.0, 3.5])  # means of neighbours
    assert [text.get_text() for text in scores.texts] == ["20.2"]


def test_several_runs_are_told_apart(run: Path) -> None:
    curves = read_curves(run)
    figure = plot_curves({"a": curves, "b": curves})
    labels = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert labels == {"a · train/loss", "a · val/loss", "b · train/loss", "b · val/loss"}
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert len(colours) == 2


def test_the_command_draws_a_real_run(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "curves.png"
    finished = lit("curves", tiny_run, "--output", output)
    assert (finished.status, finished.out) == (0, f"{output}\n"), finished.err
    assert output.read_bytes().startswith(b"\x89PNG")
    curves = read_curves(tiny_run)
    assert {"train/loss", "val/loss", "val/perplexity"} <= set(curves)
    assert curves["train/loss"][max(curves["train/loss"])] < curves["train/loss"][min(curves["train/loss"])]


def test_scoring_a_run_adds_nothing_to_its_curves(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", sentences(60, 1))
    write_pairs(tmp_path / "val", sentences(6, 2))
    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    assert lit("fit", "--config", tmp_path / "run.yaml").status == 0
    before = read_curves(tmp_path / "run")
    assert list(before["val/loss"]) == [2, 4]
    assert lit("validate", "--config", tmp_path / "run" / "config.yaml").status == 0
    assert read_curves(tmp_path / "run") == before
    again = ("--overwrite", "true", "--trainer.max_steps", 2)
    assert lit("fit", "--config", tmp_path / "run.yaml", *again).status == 0
    assert list(read_curves(tmp_path / "run")["train/loss"]) == [1, 2]  # nothing of the run that was overwritten


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no metrics.csv of a training"),
        ("a,b\n1,2\n", "no column named step"),
        ("step,train/x\n1,many\n", "damaged"),
        ("\x89PNG\udcff", "no table of metrics"),
        (f"step,train/x\n1,{'1' * 200_000}\n", "no table of metrics"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content, encoding="utf-8", errors="surrogateescape")
    finished = lit("curves", tmp_path)
    assert finished.status == 1
    assert words in finished.err
    assert str(tmp_path) in finished.err
    assert finished.err.count("\n") == 1
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
def test_a_run_too_short_for_its_log_is_told(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", sentences(60, 1))
    write_pairs(tmp_path / "val", sentences(6, 2))
    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    rare = ("--trainer.max_steps", 1, "--trainer.log_every_n_steps", 50)
    fitted = lit("fit", "--config", tmp_path / "run.yaml", *rare)
    assert fitted.status == 0, fitted.err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.csv").write_text("epoch,step,train/loss\n")
    for run in ("run", "empty"):
        finished = lit("curves", tmp_path / run)
        assert finished.status == 1
        told = f"{tmp_path / run} has a log that holds no figures of a training: nothing was logged yet, likely because"
        assert told in finished.err
        assert "trainer.log_every_n_steps" in finished.err
        assert finished.err.count("\n") == 1


def test_two_runs_are_not_one(run: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "other", 0, [{"step": 0, "train/loss": 1.0}])
    write_log(run, 7, [{"step": 0, "train/loss": 1.0}])  # a further start of the same
    read_curves(run)
    finished = lit("curves", tmp_path)
    assert finished.status == 1
    assert "holds the logs of several runs" in finished.err
    assert f"{tmp_path / 'other' / 'logs'}" in finished.err


@pytest.mark.parametrize("values", [[5.0, 4.0, math.inf, math.nan], [math.nan] * 4, [math.inf] * 4])
def test_a_run_that_diverged_is_drawn_as_far_as_it_got(tmp_path: Path, values: list[float]) -> None:
    names = ("train/loss", "val/loss", "train/perplexity", "val/bleu")
    rows = [dict.fromkeys(names, value) | {"step": step} for step, value in enumerate(values)]
    write_log(tmp_path, 0, rows)
    assert lit("curves", tmp_path).status == 0
    axes = plot_curves({"run": read_curves(tmp_path)}).axes[0]
    drawn = [value for line in axes.lines for value in line.get_ydata() if math.isfinite(value)]
    assert set(drawn) >= {value for value in values if math.isfinite(value)}


def test_an_unknown_kind_of_picture_is_one_sentence(run: Path, tmp_path: Path) -> None:
    finished = lit("curves", run, "--output", tmp_path / "curves.txt")
    assert finished.status == 1
    assert "curves.txt" in finished.err
    assert finished.err.count("\n") == 1


def test_a_name_without_ending_is_that_of_a_png(run: Path, tmp_path: Path) -> None:
    finished = lit("curves", run, "--output", tmp_path / "both")
    assert finished.out.strip() == str(tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_is_no_picture(run: Path, tmp_path: Path) -> None:
    for folder in (".", tmp_path):
        finished = lit("curves", run, "--output", folder)
        assert finished.status == 1
        assert f"--output {folder} is a folder; give the name of a picture in it" in finished.err


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(InputError, match="nothing to draw: a"):
        plot_curves({"a": {"lr-Adam": {1: 0.1}}})


def test_a_training_that_logged_scores_only_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,val/bleu\n0,14,3.5\n0,29,7.5\n")
    (tmp_path / "version_1").mkdir()
    (tmp_path / "version_1" / "metrics.csv").write_text("epoch,step,val/bleu\n0,0,9.5\n")  # of validate
    assert read_curves(tmp_path) == {"val/bleu": {15: 3.5, 30: 7.5}}
