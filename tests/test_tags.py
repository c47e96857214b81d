"""Multilingual training from the command line: tags go from the corpora into the checkpoint and the translation."""

from pathlib import Path

import pytest
import yaml
from command_line import TINY, lit, write_digits

from lit_transformer import Translator
from lit_transformer.interfaces import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two corpora: one to be translated backwards, one to be copied."""
    folder = tmp_path_factory.mktemp("tags")
    write_digits(folder)
    config = yaml.safe_load(TINY)
    config["data"] |= {
        "train": [
            {"path": str(folder / "train"), "src": "en", "tgt": "de", "src_tag": "<back>"},
            {"path": str(folder / "train"), "src": "en", "tgt": "en", "src_tag": "<copy>", "filter": {"max_words": 4}},
        ],
        "weights": [3, 1],
        **{part: {"path": str(folder / part), "src_tag": "<back>"} for part in ("val", "test")},
        "predict": None,
    }
    config["trainer"]["default_root_dir"] = str(folder / "run")
    (folder / "tags.yaml").write_text(yaml.safe_dump(config))
    finished = lit("fit", "--config", folder / "tags.yaml")
    assert finished.status == 0, finished.err
    assert "epoch 0, pool 0: left out" in finished.err
    return folder / "run"


def test_the_tokenizer_of_the_checkpoint_knows_the_tags(run: Path) -> None:
    tokenizer = Translator.from_pretrained(run).tokenizer
    assert tokenizer.tags == ["<back>", "<copy>"]
    assert tokenizer.pieces_src(tokenizer.encode_src(["<copy> a b"])[0])[0] == "<copy>"


def test_the_option_is_the_same_as_a_typed_tag(run: Path) -> None:
    by_option = lit("translate", run, "--src_tag", "<back>", "a b c", "", "d")
    typed = lit("translate", run, "<back> a b c", "", "<back> d")
    assert by_option.status == 0, by_option.err
    assert by_option.out == typed.out
    assert by_option.out.split("\n")[1] == ""
    assert "<" not in by_option.out
    assert "tag" not in by_option.err + typed.err
    assert by_option.out != lit("translate", run, "a b c", "", "d").out


def test_a_line_of_tags_alone_stays_empty(run: Path) -> None:
    translator = Translator.from_pretrained(run)
    assert translator(["", "<back>", " <copy> <back> ", "<copy> a"])[:3] == ["", "", ""]
    with pytest.raises(InputError, match="the source sentence is empty"):
        translator.attention("<back> ")


def test_lines_without_a_tag_are_told_once(run: Path) -> None:
    finished = lit("translate", run, "", "<copy> a", "b", "c")
    assert finished.status == 0
    line = "line 3 has no tag, but the model was trained with tags (<back>, <copy>): set --src_tag to one of them"
    assert [told for told in finished.err.splitlines() if "tag" in told] == [line]


def test_scoring_without_a_tag_is_told_for_each_corpus(run: Path) -> None:
    for command, untagged in (("test", "test"), ("fit", "val")):
        folder = run if command == "test" else run.parent / "untagged"
        given = ("--trainer.default_root_dir", folder, f"--data.{untagged}.src_tag", "null")
        finished = lit(command, "--config", run / "config.yaml", *given)
        assert finished.status == 0, finished.err
        told = [line for line in finished.err.splitlines() if "has no src_tag" in line]
        assert len(told) == 1, finished.err
        assert f"{run.parent / untagged}, en-de) has no src_tag, but the model was trained with tags" in told[0]
        assert "<back>, <copy>" in told[0]


def test_a_source_without_text_has_no_tag_and_an_empty_translation(run: Path) -> None:
    (run.parent / "gaps.en").write_text("a b\n\n \nc\n", encoding="utf-8")
    (run.parent / "gaps.de").write_text("b a\n\nx\nc\n", encoding="utf-8")
    output = run.parent / "gaps.txt"
    finished = lit(
        "test", "--config", run / "config.yaml", f"--data.test.path={run.parent / 'gaps'}",
        "--data.test.src_tag=<back>", f"--bleu.output_path={output}", "--averaging.num_checkpoints=1",
    )  # fmt: skip
    assert finished.status == 0, finished.err
    lines = output.read_text(encoding="utf-8").split("\n")
    assert [bool(line) for line in lines] == [True, False, False, True, False]


def test_an_unknown_tag_is_refused(run: Path) -> None:
    finished = lit("translate", run, "--src_tag", "<forth>", "a")
    assert finished.status == 1
    assert "--src_tag <forth> is none of the tags that the model knows: <back>, <copy>" in finished.err


def test_the_run_is_scored_and_resumed_with_its_own_configuration(run: Path) -> None:
    for command in (("test",), ("fit", "--ckpt_path", "last", "--trainer.max_steps", "10")):
        finished = lit(command[0], "--config", run / "config.yaml", *command[1:])
        assert finished.status == 0, finished.err
        assert "src_tag" not in finished.err


def test_a_tag_that_a_line_has_already_is_not_doubled(run: Path) -> None:
    expected = lit("translate", run, "--src_tag", "<back>", "a b c", "d")
    found = lit("translate", run, "--src_tag", "<back>", "<back> a b c", "d")
    assert found.status == 0, found.err
    assert found.out == expected.out
    other = lit("translate", run, "--src_tag", "<back>", "a", "<copy> b")
    assert other.status == 0
    assert "line 2 begins with <copy>, and has <back> before that now" in other.err
    assert other.out == lit("translate", run, "<back> a", "<back> <copy> b").out
