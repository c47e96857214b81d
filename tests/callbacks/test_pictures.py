"""Pictures of the attention during training: who gets them, when, and what they cost."""

from __future__ import annotations

import csv
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import lit, tiny_project
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, Logger
from standins import trainer

from lit_transformer import AttentionPictures, LitTransformer, TeachingCorpus, Transformer, TranslationDataModule
from lit_transformer.interfaces import InputError
from lit_transformer.vocabulary import BOS_ID, EOS_ID

SOURCES, TARGETS = ["a b c", "h"], ["c b a", "h"]


pytestmark = pytest.mark.usefixtures("own_folder")


class Album(Logger):
    """A logger that takes pictures as Weights & Biases does."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple[str, int, np.ndarray[Any, Any]]] = []

    name, version = "album", 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def log_hyperparams(self, *args: object, **kwargs: object) -> None: ...

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        assert step is not None
        self.pictures += [(key, step, image) for image in images]


def fit(
    *callbacks: AttentionPictures, logger: Any, max_steps: int = 4, network: type[Transformer] = Transformer
) -> LitTransformer:
    """A run of a few steps on the teaching corpus that validates after each of them."""
    torch.manual_seed(1)
    data = TranslationDataModule(
        train=TeachingCorpus("train", max_rows=60), val=TeachingCorpus("validation", max_rows=4), vocab_size=300,
        max_tokens=64,
    )  # fmt: skip
    module = LitTransformer(network(vocab_size=300, num_layers=2, d_model=16, d_ff=32, num_heads=2, dropout=0.3))
    often = {"max_steps": max_steps, "max_epochs": -1, "val_check_interval": 1, "check_val_every_n_epoch": None}
    trainer(*callbacks, logger=logger, log_every_n_steps=1, **often).fit(module, data)
    return module


def test_pictures_come_every_n_validations_and_change_nothing_else(tmp_path: Path) -> None:
    album = Album()
    pictures = AttentionPictures(["I love cats"], every_n_validations=2)
    module = fit(pictures, logger=[CSVLogger(tmp_path), album])
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert any(row["train/loss"] for row in csv.DictReader(metrics.read_text().splitlines()))
    assert [(key, step) for key, step, _ in album.pictures] == [("attention/1", 2), ("attention/1", 4)]
    for _, _, pixels in album.pictures:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert min(pixels.shape[:2]) > 100
        assert len(np.unique(pixels)) > 20  # it is not blank
    assert pictures.state_dict() == {"num_validations": 4}
    for (name, mine), theirs in zip(module.named_parameters(), fit(logger=False).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, msg=name)
        assert mine.requires_grad


def test_the_picture_shows_the_weights_of_the_network_in_training() -> None:
    views = []

    class Spy(AttentionPictures):
        def draw(self, view: Any) -> Any:
            views.append(view)
            return super().draw(view)

    album = Album()
    module = fit(Spy(["I love cats"], ["나는 고양이를 좋아해"], kind="cross"), logger=album, max_steps=1)
    tokenizer = module.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
    src, tgt = tokenizer.encode_src(["I love cats"]), tokenizer.encode_tgt(["나는 고양이를 좋아해"])
    with torch.inference_mode():
        maps = module.network.eval().attention_maps(torch.tensor(src), torch.tensor(tgt)[:, :-1])  # type: ignore[operator]
    for mine, theirs in zip(views[0].maps.cross, maps.cross, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert views[0].tgt_tokens == tokenizer.pieces_tgt(tgt[0])
    assert views[0].title == "I love cats → 나는 고양이를 좋아해"


def test_counting_goes_on_after_resume() -> None:
    pictures = AttentionPictures(["a"], every_n_validations=3)
    pictures.load_state_dict({"num_validations": 2})
    assert pictures.state_dict() == {"num_validations": 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sentences": "I love cats"}, "sentences must be a list of sentences"),
        ({"sentences": ["a", " "]}, "none of them empty"),
        ({"sentences": []}, "one or more; got 0 and none"),
        ({"sentences": ["a", "b"], "targets": ["c"]}, "got 2 and 1"),
        ({"sentences": ["a"], "every_n_validations": 0}, "every_n_validations must be at least 1, got 0"),
        ({"sentences": ["a"], "kind": "self"}, "kind must be one of overview, encoder, decoder, cross; got 'self'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AttentionPictures(**arguments)


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_is_not_there_is_told_before_training(layer: int) -> None:
    with pytest.raises(InputError, match=f"layer={layer}, but the network has num_layers=2"):
        fit(AttentionPictures(["a"], layer=layer), logger=Album())


@pytest.mark.parametrize("logger", [False, CSVLogger])
def test_loggers_without_pictures_are_told_before_training(logger: Any, tmp_path: Path) -> None:
    made = logger(tmp_path) if logger else False
    with pytest.raises(MisconfigurationException, match=r"needs a logger that takes pictures.*TensorBoardLogger"):
        fit(AttentionPictures(["a"]), logger=made)


def test_missing_matplotlib_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r'pip install "lit-transformer\[plot\]"'):
        fit(AttentionPictures(["a"]), logger=Album())


CALLBACK = {
    "class_path": "lit_transformer.AttentionPictures",
    "init_args": {"sentences": SOURCES, "targets": TARGETS},
}


def config(folder: Path, logger: bool = True) -> Path:
    """The tiny project with pictures for TensorBoard."""
    path = tiny_project(folder)
    content = yaml.safe_load(path.read_text())
    content["trainer"]["callbacks"] = [CALLBACK]
    if logger:
        arguments = {"save_dir": str(folder / "board"), "name": "", "version": ""}
        content["trainer"]["logger"] = {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": arguments
        }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def pictures_of(board: Path) -> dict[str, list[int]]:
    """The steps of every picture in a folder of TensorBoard's, which TensorBoard itself reads."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reading.EventAccumulator(str(board), size_guidance={"images": 0})
    found.Reload()
    for tag in found.Tags()["images"]:
        for picture in found.Images(tag):
            assert picture.encoded_image_string.startswith(b"\x89PNG")
            assert min(picture.width, picture.height) > 100
    return {tag: [picture.step for picture in found.Images(tag)] for tag in found.Tags()["images"]}


def test_tensorboard_gets_them_from_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    finished = lit("fit", "--config", config(tmp_path), "--trainer.max_steps", 4)
    assert finished.status == 0, finished.err
    assert pictures_of(tmp_path / "board") == {"attention/1": [4], "attention/2": [4]}


def test_the_default_logger_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished = lit("fit", "--config", config(tmp_path, logger=False))
    assert finished.status == 1
    last = finished.err.strip().splitlines()[-1]
    assert last.startswith("lit-transformer: AttentionPictures needs a logger that takes pictures")
    assert "(CSVLogger) none does" in last


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_of_two_processes_the_first_draws_alone(tmp_path: Path, strategy: str) -> None:
    pytest.importorskip("tensorboard")
    arguments = {"ddp": ["--trainer.strategy", "ddp"], "fsdp": [
        "--trainer.strategy",
        '{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", '
        '"init_args": {"save_distributed_checkpoint": false}}',
    ]}[strategy]  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "lit_transformer",
        "fit",
        "--config",
        str(config(tmp_path)),
        "--trainer.devices",
        "2",
    ]
    finished = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert pictures_of(tmp_path / "board") == {"attention/1": [4, 8], "attention/2": [4, 8]}
    refused = subprocess.run(
        [*command, *arguments, "--trainer.logger", "false", "--overwrite", "true"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "needs a logger that takes pictures" in refused.stderr


@pytest.mark.parametrize(("side", "excess"), [("source", 1), ("target", 1), ("source", 0), ("target", 0)])
def test_a_sentence_that_the_network_has_no_room_for_is_found_before_training(side: str, excess: int) -> None:
    class Recipe:  # a token for each word
        def encode_src(self, texts: list[str]) -> list[list[int]]:
            return [[*range(4, 4 + len(text.split())), EOS_ID] for text in texts]

        def encode_tgt(self, texts: list[str]) -> list[list[int]]:
            return [[BOS_ID, *row] for row in self.encode_src(texts)]

    network = Transformer(vocab_size=300, num_layers=1, d_model=16, d_ff=32, num_heads=2, max_length=8)
    long, short = " ".join("abcdefgh"[: 7 + excess]), "a b"  # and EOS; a target is read from BOS on without it
    texts = [long, short] if side == "source" else [short, long]
    pictures = AttentionPictures([texts[0]], targets=[texts[1]])
    strategy = SimpleNamespace(broadcast=lambda found: found)
    stub = SimpleNamespace(datamodule=SimpleNamespace(tokenizer=Recipe()), loggers=[Album()], strategy=strategy)
    begin = partial(pictures.on_fit_start, stub, LitTransformer(network))  # type: ignore[arg-type]
    if not excess:
        begin()
        network.attention_maps(
            torch.tensor(Recipe().encode_src([texts[0]])), torch.tensor(Recipe().encode_tgt([texts[1]]))[:, :-1]
        )
        return
    with pytest.raises(InputError, match=r"is to show 'a b c d e f g h', which has 9 tokens, .* max_length=8"):
        begin()


class Blind(Transformer):
    def attention_maps(self, src: torch.Tensor, tgt_input: torch.Tensor) -> Any:
        raise InputError("Blind has nothing to look at")


def test_a_network_without_attention_to_see_trains_on() -> None:
    album = Album()
    with pytest.warns(UserWarning, match="AttentionPictures draws nothing: Blind has nothing to look at"):
        module = fit(AttentionPictures(["I love cats"]), logger=[album], network=Blind)
    assert module.trainer.global_step == 4
    assert not album.pictures
