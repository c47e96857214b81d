"""The last step always has a checkpoint, from which training goes on as if it had not ended."""

import contextlib
import csv
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import lit, tiny_project
from lightning.pytorch.callbacks import Callback
from standins import Data, Module, trainer

from lit_transformer.callbacks.checkpoint import StepCheckpoint
from lit_transformer.interfaces import InputError


def fit(folder: Path, *options: str) -> list[str]:
    """Runs in a folder of its own, and returns the names of the checkpoints there."""
    finished = lit("fit", "--config", folder.parent / "tiny.yaml", "--trainer.default_root_dir", folder, *options)
    assert finished.status == 0, finished.err
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def losses(folder: Path) -> dict[str, str]:
    logs = [log.read_text().splitlines() for log in folder.glob("logs/*/metrics.csv")]
    return {row["step"]: row["train/loss"] for log in logs for row in csv.DictReader(log) if row.get("train/loss")}


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]


def of_callback(folder: Path, name: str) -> dict[str, Any]:
    """What the callback knew when it wrote a checkpoint."""
    callbacks = torch.load(folder / "checkpoints" / name, weights_only=True)["callbacks"]
    (state,) = [state for key, state in callbacks.items() if key.startswith("StepCheckpoint")]
    return state


def ranked(folder: Path, name: str) -> dict[str, float]:
    """The scores of the best checkpoints, as they were when one of them was written."""
    return {Path(path).name: score.item() for path, score in of_callback(folder, name)["best_k_models"].items()}


def validated(folder: Path, name: str) -> float:
    """The loss that ``validate`` measures for a checkpoint."""
    options = ["--ckpt_path", folder / "checkpoints" / name, "--averaging.num_checkpoints=1"]
    finished = lit("validate", "--config", folder / "config.yaml", "--trainer.enable_progress_bar=false", *options)
    found = re.search(r"val/loss\W+([\d.]+)", finished.out)
    assert found, finished.out + finished.err
    return float(found[1])


def assert_same_end(one: Path, other: Path, name: str) -> None:
    """Two runs have the same losses and end with the same weights."""
    assert losses(one) == losses(other)
    first, second = weights(one, name), weights(other, name)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_project(tmp_path)
    return tmp_path


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_last_step_is_resumed_and_scored(project: Path, accumulate: int) -> None:
    options = [f"--trainer.accumulate_grad_batches={accumulate}"]
    assert fit(project / "a", *options, "--trainer.max_steps=6") == ["step=4.ckpt", "step=6.ckpt"]
    config = ["--config", str(project / "a/config.yaml"), "--trainer.enable_progress_bar=false"]
    tested = lit("test", *config)
    assert "mean of 2 checkpoints" in tested.err
    assert "step=6.ckpt (step 6)" in tested.err
    assert fit(project / "a", *options, "--trainer.max_steps=9", "--ckpt_path=last") == [
        f"step={step}.ckpt" for step in (4, 6, 8, 9)
    ]
    assert fit(project / "b", *options, "--trainer.max_steps=9") == ["step=4.ckpt", "step=8.ckpt", "step=9.ckpt"]
    assert_same_end(project / "a", project / "b", "step=9.ckpt")


def test_a_resume_that_fails_before_it_trains_leaves_nothing(project: Path) -> None:
    options = ["--trainer.max_steps=-1", "--checkpoint.filename=of_{epoch}", "--checkpoint.every_n_train_steps=1000"]
    before = fit(project / "a", *options, "--trainer.max_epochs=2")
    kept = {name: (project / "a" / "checkpoints" / name).read_bytes() for name in before}
    arguments = ["--config", project / "tiny.yaml", "--trainer.default_root_dir", project / "a", *options]
    finished = lit("fit", *arguments, "--trainer.max_epochs=1", "--ckpt_path=last")
    assert finished.status == 1
    assert "max_epochs=1" in finished.err
    assert {path.name: path.read_bytes() for path in (project / "a" / "checkpoints").iterdir()} == kept


def test_no_second_checkpoint_of_a_step(project: Path) -> None:
    assert fit(project / "a", "--trainer.max_steps=8") == ["step=4.ckpt", "step=8.ckpt"]


def test_a_tokenizer_of_another_recipe_is_refused_before_it_replaces_the_one_of_the_run(project: Path) -> None:
    fit(project / "a", "--trainer.max_steps=4")
    made = (project / "a" / "tokenizer.json").read_bytes()
    config = ["--config", project / "a" / "config.yaml", "--ckpt_path=last", "--trainer.max_steps=6"]
    changed = ["--data.tokenizer=lit_transformer.SubwordTokenizer", "--data.tokenizer.init_args.lowercase=true"]
    refused = lit("fit", *config, *changed)
    assert refused.status == 1
    assert "made by another recipe than data.tokenizer says now (lowercase)" in refused.err
    assert (project / "a" / "tokenizer.json").read_bytes() == made
    elsewhere = ["--trainer.default_root_dir", project / "b", "--ckpt_path", project / "a/checkpoints/step=4.ckpt"]
    assert lit("fit", *config, *elsewhere).status == 0
    assert (project / "b" / "tokenizer.json").read_bytes() == made
    resumed = lit("fit", *config, "--data.tokenizer_max_pairs=9")  # which the trained one does not depend on any more
    assert resumed.status == 0, resumed.err
    assert (project / "a" / "tokenizer.json").read_bytes() == made


@pytest.mark.slow
def test_the_oldest_makes_room_for_the_last(project: Path) -> None:
    assert fit(project / "a", "--trainer.max_steps=10", "--checkpoint.save_top_k=2") == ["step=10.ckpt", "step=8.ckpt"]


@pytest.mark.slow
def test_training_by_epochs_ends_with_a_checkpoint_that_the_next_goes_on_from(project: Path) -> None:
    options = ["--trainer.max_steps=-1", "--checkpoint.every_n_train_steps=1000", "--trainer.check_val_every_n_epoch=1"]
    options += ["--trainer.val_check_interval=null"]
    (first,) = fit(project / "a", *options, "--trainer.max_epochs=1")
    both = fit(project / "a", *options, "--trainer.max_epochs=2", "--ckpt_path=last")
    (last,) = fit(project / "b", *options, "--trainer.max_epochs=2")
    assert both == sorted([first, last])
    assert_same_end(project / "a", project / "b", last)


BEST = ["--checkpoint.monitor=val/loss", "--checkpoint.mode=min", "--bleu.every_n_validations=0"]


def test_each_checkpoint_is_ranked_by_the_score_of_its_own_weights(project: Path) -> None:
    options = [*BEST, "--checkpoint.save_top_k=-1"]
    assert fit(project / "a", *options, "--trainer.max_steps=8") == ["step=4.ckpt", "step=8.ckpt"]
    expected = {name: pytest.approx(validated(project / "a", name)) for name in ("step=4.ckpt", "step=8.ckpt")}
    scores = ranked(project / "a", "step=8.ckpt")
    assert scores == expected
    assert scores["step=8.ckpt"] < scores["step=4.ckpt"]
    assert Path(of_callback(project / "a", "step=8.ckpt")["best_model_path"]).name == "step=8.ckpt"
    fit(project / "a", *options, "--trainer.max_steps=14", "--ckpt_path=last")
    names = [f"step={step}.ckpt" for step in (12, 14, 4, 8)]
    assert fit(project / "b", *options, "--trainer.max_steps=14") == names
    assert ranked(project / "a", "step=14.ckpt") == ranked(project / "b", "step=14.ckpt")
    assert sorted(ranked(project / "b", "step=14.ckpt")) == ["step=12.ckpt", "step=4.ckpt", "step=8.ckpt"]
    assert_same_end(project / "a", project / "b", "step=14.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accumulate", "options", "steps"),
    [
        (1, ["--checkpoint.every_n_train_steps=3"], [4, 8]),  # waits for the next validation
        (3, ["--trainer.val_check_interval=12"], [4, 8]),
        (3, ["--checkpoint.every_n_train_steps=1"], [1, 2, 4, 5, 6, 8, 9]),  # most validations are within a step
        (1, ["--checkpoint.every_n_train_steps=null", "--checkpoint.every_n_epochs=1"], [4, 8]),  # at each validation
    ],
)
def test_no_rhythm_ranks_by_a_stale_score_and_all_resume(
    project: Path, accumulate: int, options: list[str], steps: list[int]
) -> None:
    options = [*BEST, "--checkpoint.save_top_k=-1", f"--trainer.accumulate_grad_batches={accumulate}", *options]
    names = [f"step={step}.ckpt" for step in steps]
    fit(project / "whole", *options, "--trainer.max_steps=10")
    assert ranked(project / "whole", names[-1]) == {
        name: pytest.approx(validated(project / "whole", name)) for name in names
    }
    for name in names:
        broken = project / f"from {name}"
        fit(broken, *options, "--trainer.max_steps=10", "--ckpt_path", str(project / "whole/checkpoints" / name))
        whole = losses(project / "whole")
        assert losses(broken) == {step: whole[step] for step in list(whole)[int(name[5:-5]) :]}
        one, other = weights(project / "whole", "step=10.ckpt"), weights(broken, "step=10.ckpt")
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_checkpoints_of_whole_epochs_are_scored_and_resume(project: Path, accumulate: int) -> None:
    options = [*BEST, "--checkpoint.save_top_k=-1", f"--trainer.accumulate_grad_batches={accumulate}"]
    options += ["--trainer.max_steps=-1", "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=1"]
    options += ["--trainer.val_check_interval=null", "--checkpoint.every_n_train_steps=1"]
    names = sorted(fit(project / "whole", *options), key=lambda name: int(name[5:-5]))
    assert len(names) == 3
    assert ranked(project / "whole", names[-1]) == {
        name: pytest.approx(validated(project / "whole", name)) for name in names
    }
    for name in names[:-1]:
        broken = project / f"from {name}"
        fit(broken, *options, "--ckpt_path", str(project / "whole/checkpoints" / name))
        whole = losses(project / "whole")
        assert losses(broken) == {step: whole[step] for step in list(whole)[int(name[5:-5]) :]}
        one, other = weights(project / "whole", names[-1]), weights(broken, names[-1])
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_a_score_that_comes_with_every_second_validation_is_waited_for(project: Path) -> None:
    options = ["--checkpoint.monitor=val/bleu", "--bleu.every_n_validations=2", "--trainer.val_check_interval=2"]
    options += ["--checkpoint.every_n_train_steps=5", "--checkpoint.save_top_k=-1"]
    assert fit(project / "a", *options, "--trainer.max_steps=9") == ["step=8.ckpt", "step=9.ckpt"]
    (project / "a/checkpoints/step=9.ckpt").unlink()  # no score is known of it
    assert fit(project / "a", *options, "--trainer.max_steps=13", "--ckpt_path=last") == [
        f"step={step}.ckpt" for step in (12, 13, 8)
    ]
    assert sorted(ranked(project / "a", "step=13.ckpt")) == ["step=12.ckpt", "step=8.ckpt"]


def test_the_last_is_kept_beside_the_best_and_does_not_replace_it(project: Path) -> None:
    options = [*BEST, "--checkpoint.mode=max", "--checkpoint.save_top_k=1", "--checkpoint.filename=best"]
    assert fit(project / "a", *options, "--trainer.max_steps=8") == ["best.ckpt", "step=8.ckpt"]
    best = torch.load(project / "a/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 4  # the loss falls, so that the largest is the first
    assert ranked(project / "a", "step=8.ckpt") == {"best.ckpt": pytest.approx(validated(project / "a", "best.ckpt"))}
    assert validated(project / "a", "step=8.ckpt") < validated(project / "a", "best.ckpt")


@pytest.mark.slow
def test_save_top_k_of_0_saves_nothing_or_the_last_alone(project: Path) -> None:
    assert lit(
        "fit", "--config", "tiny.yaml", "--trainer.default_root_dir=none", "--checkpoint.save_top_k=0"
    ).status == 0  # fmt: skip
    assert not list(project.glob("none/**/*.ckpt"))
    options = ["--checkpoint.save_top_k=0", "--checkpoint.save_last=true", "--trainer.max_steps=6"]
    assert fit(project / "a", *options) == ["last.ckpt"]
    assert torch.load(project / "a/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_stopped_keeps_its_best_checkpoint(tmp_path: Path, error: type[BaseException]) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.log("score", float(trainer.global_step))
            if trainer.global_step == 6:
                raise error

    rhythm = {"monitor": "score", "mode": "min", "save_top_k": 1, "every_n_train_steps": 2, "save_on_exception": True}
    checkpoint = StepCheckpoint(dirpath=tmp_path, filename="best", **rhythm)
    run = trainer(Stop(), checkpoint, max_steps=10, max_epochs=-1, limit_val_batches=0, enable_checkpointing=True)
    with pytest.raises((error, SystemExit)):
        run.fit(Module(), Data())
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.iterdir()}
    assert steps == {"best.ckpt": 2, "step=6.ckpt": 6}
    assert (Path(checkpoint.best_model_path).name, checkpoint.best_model_score.item()) == ("best.ckpt", 2.0)


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        (None, "max"), ("step", "max"), ("val/bleu", "max"), ("val/chrf", "max"), ("val/loss", "min"),
        ("val/perplexity", "min"), ("val/ter", "min"), ("val/charerrorrate", "min"), ("val/meteor", "max"),
        ("val/translationeditrate", "min"), ("val/extendededitdistance", "min"), ("val/wordinfolost", "min"),
        ("val/wordinfopreserved", "max"), ("val/nll", "min"),
    ],
)  # fmt: skip
def test_what_is_better_follows_from_what_is_monitored(monitor: str | None, mode: str) -> None:
    assert StepCheckpoint(monitor=monitor).mode == mode
    assert StepCheckpoint(monitor=monitor, mode="max").mode == "max"


def test_the_least_loss_is_the_best_without_a_word(project: Path) -> None:
    options = ["--checkpoint.monitor=val/loss", "--bleu.every_n_validations=0", "--checkpoint.save_top_k=1"]
    assert fit(project / "a", *options, "--trainer.max_steps=8") == ["step=8.ckpt"]  # the loss falls


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_an_interruption_leaves_the_checkpoints_of_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    """The mean of the last ones is that of the whole run, and interruptions do not pile up."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step in self.at:
                self.at.remove(trainer.global_step)
                raise KeyboardInterrupt

    stop = Stop()
    stop.at = [5, 7]
    path = None
    found = []
    for _ in range(3):
        checkpoint = StepCheckpoint(tmp_path, "step={step}", "step", auto_insert_metric_name=False, save_top_k=2,
                                    every_n_train_steps=4, save_on_exception=True)  # fmt: skip
        run = trainer(stop, checkpoint, max_steps=12, max_epochs=-1, limit_val_batches=0, enable_checkpointing=True)
        with contextlib.suppress(SystemExit):
            run.fit(Module(), Data(), ckpt_path=path, weights_only=True)
        steps = {torch.load(one, weights_only=True)["global_step"]: one for one in tmp_path.glob("*.ckpt")}
        path = steps[max(steps)]
        found.append(sorted(steps))
    assert found == [[4, 5], [4, 5, 7], [8, 12]]


def test_what_is_written_as_the_last_does_not_remove_what_is_left_of_an_interruption(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 5:
                raise KeyboardInterrupt

    checkpoint = StepCheckpoint(tmp_path, "step={step}", "step", auto_insert_metric_name=False, save_last=True,
                                every_n_train_steps=4, save_on_exception=True)  # fmt: skip
    run = trainer(Stop(), checkpoint, max_steps=12, max_epochs=-1, limit_val_batches=0, enable_checkpointing=True)
    with contextlib.suppress(SystemExit):
        run.fit(Module(), Data())
    assert {path.name for path in tmp_path.iterdir()} == {"step=4.ckpt", "step=5.ckpt", "last.ckpt"}


def test_what_a_single_process_of_several_fails_with_asks_the_others_for_nothing(tmp_path: Path) -> None:
    """They wait for it somewhere else, so that a checkpoint of all would never end."""
    checkpoint = StepCheckpoint(tmp_path, save_on_exception=True)
    saved: list[str] = []
    alone = SimpleNamespace(world_size=2, global_step=3, fast_dev_run=False, sanity_checking=False)
    alone.callback_metrics, alone.current_epoch = {}, 0
    alone.save_checkpoint = lambda path, *_: saved.append(path)
    alone.strategy = SimpleNamespace(broadcast=lambda value: value)
    alone.is_global_zero, alone.loggers = False, []
    checkpoint._has_begun = True  # the training
    checkpoint.on_exception(alone, Module(), RuntimeError("CUDA out of memory"))
    checkpoint.on_exception(alone, Module(), KeyboardInterrupt())
    assert saved == []
    together = InputError("another process cannot read its part of the training text")
    together.is_everywhere = True
    checkpoint.on_exception(alone, Module(), together)
    assert len(saved) == 1


def test_a_folder_that_was_moved_goes_on_with_its_best(project: Path) -> None:
    options = ["--checkpoint.monitor=val/loss", "--checkpoint.save_top_k=2", "--bleu.every_n_validations=0"]
    options += ["--trainer.val_check_interval=2", "--checkpoint.every_n_train_steps=2"]
    fit(project / "a", *options, "--trainer.max_steps=6")
    before = ranked(project / "a", max(path.name for path in (project / "a/checkpoints").iterdir()))
    shutil.move(project / "a", project / "b")
    after = fit(project / "b", *options, "--trainer.max_steps=10", "--ckpt_path=last")
    steps = {torch.load(project / "b/checkpoints" / name, weights_only=True)["global_step"]: name for name in after}
    best = of_callback(project / "b", steps[max(steps)])
    assert Path(best["dirpath"]) == (project / "b/checkpoints").absolute()
    known = {Path(name).name for name in best["best_k_models"]}
    assert len(known) == 2
    assert len(after) <= 3, "those that are not among the best any more are removed, but for the last"
    assert float(best["best_model_score"]) <= min(before.values())
