"""Pushing to the Hub and fetching from it, against a stand-in on loopback; each error is one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub_standin import TOKEN, Hub, running_hub
from tiny_run import sentences
from tiny_run import tiny_run as tiny_run

from lit_transformer import Translator
from lit_transformer.checkpoints import CheckpointError
from lit_transformer.interfaces import InputError

NAME = "somebody/tiny-en-de"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


class Shell:
    """Runs commands in processes of their own: the Hub's package reads its settings when it is imported."""

    def __init__(self, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HOME", str(folder / "home"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.delenv("HF_TOKEN", raising=False)

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lit_transformer", *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, encoding="utf-8", check=False)

    def fails_with(self, words: str, *arguments: object) -> None:
        done = self(*arguments)
        assert done.returncode == 1, done.stderr
        assert words in done.stderr
        messages = [line for line in done.stderr.splitlines() if not line.startswith("fetching ")]
        assert len(messages) == 1, done.stderr


@pytest.fixture
def shell(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, hub.url, monkeypatch)


def test_there_and_back_with_a_card(
    shell: Shell, hub: Hub, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    scores = {
        "scores": {"bleu": {"value": 37.36, "signature": "nrefs:1|tok:13a|version:2.6.0"}},
        "checkpoint": {"path": "runs/tiny/checkpoints/step=150.ckpt", "step": 150, "averaged_from": {}},
        "network": Translator.from_pretrained(tiny_run).network.spec,
        "config": {"seed_everything": 1, "model": {"label_smoothing": 0.1}, "data": {"train": "/home/somebody/secret"}},
    }
    (run / "test.scores.json").write_text(json.dumps(scores), encoding="utf-8")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    options = ("--language", "en", "de", "--license", "cc-by-4.0", "--dataset", "multi30k", "--private")
    pushed = shell("push", run, NAME, *options)
    assert pushed.returncode == 0, pushed.stderr
    files = hub.repositories[NAME]["main"]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert pushed.stdout.startswith(f"{hub.url}/{NAME}/commit/")
    assert hub.private == {NAME}

    card = files["README.md"].decode()
    _, head, text = card.split("---\n", 2)
    told = yaml.safe_load(head)
    assert (told["language"], told["license"], told["datasets"]) == (["en", "de"], "cc-by-4.0", ["multi30k"])
    assert (told["metrics"], told["library_name"]) == (["bleu"], "lit-transformer")
    assert told["model-index"][0]["results"][0]["metrics"] == [{"type": "bleu", "value": 37.36}]
    assert r"| bleu | 37.4 | `nrefs:1\|tok:13a\|version:2.6.0` |" in text
    assert "label_smoothing" in text
    assert "secret" not in text

    lines = sentences(3, seed=5)
    translated = shell("translate", NAME, *lines)
    assert translated.stdout.splitlines() == Translator.from_pretrained(tiny_run)(lines), translated.stderr

    assert translated.stderr == f"fetching {NAME} from the Hub of Hugging Face\n"

    hub.private.clear()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shell.fails_with("there already and public", "push", run, NAME, "--private")
    assert hub.repositories[NAME]["main"] == files
    hub.private.add(NAME)

    hub.failure = 503  # from here on the cache has to do
    assert shell("translate", NAME, *lines).stdout == translated.stdout
    hub.failure = None
    assert shell("push", tiny_run / "checkpoints" / "step=50.ckpt", NAME, "--revision", "early").returncode == 0
    assert hub.repositories[NAME]["early"]["model.safetensors"] != files["model.safetensors"]
    assert b"37.4" not in hub.repositories[NAME]["early"]["README.md"]


def test_each_error_is_one_sentence(shell: Shell, hub: Hub, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.fails_with("log in (hf auth login)", "push", tiny_run, NAME)
    shell.fails_with("write owner/name", "push", tiny_run, "only-a-name")
    shell.fails_with("no somebody/nothing on the Hub you may see", "translate", "somebody/nothing", "one")
    hub.repositories["somebody/else"] = {"main": {"model.safetensors": b"x", "config.json": b"{}"}}
    shell.fails_with("it has no tokenizer.json", "translate", "somebody/else", "one")
    assert "fetching somebody/nothing from" in shell("translate", "somebody/nothing", "one").stderr
    shell.fails_with("runz/시험 does not exist", "translate", "runz/시험", "one")
    shell.fails_with("a/b--c does not exist", "translate", "a/b--c", "one")
    shell.fails_with("no name of a repository", "translate", f"a/{'b' * 200}", "one")
    hub.failure = 500
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shell.fails_with("status 500", "push", tiny_run, NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    shell.fails_with("cannot be reached", "translate", "somebody/other", "one")
    shell.fails_with("cannot be reached", "push", tiny_run, NAME)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shell.fails_with("cannot be reached", "translate", "somebody/other", "one")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"class_path": "trap.Network", "init_args": {}}, "asks for the network class 'trap.Network'"),
        ({"class_path": "lit_transformer_trap.Network"}, "asks for the network class"),
        ({"class_path": ["lit_transformer.Transformer"]}, "names no network class"),
        (
            {
                "class_path": "lit_transformer.Ensemble",
                "init_args": {"networks": [{"class_path": "in_trap.Network"}]},
            },
            "asks for the network class 'in_trap.Network'",
        ),
        (["lit_transformer.Transformer"], "names no network class"),
    ],
)
def test_no_code_is_imported_for_a_name_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, config: object, words: str
) -> None:
    for module in ("trap", "in_trap", "lit_transformer_trap"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(b"{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    with caplog.at_level("INFO"), pytest.raises(InputError, match=words) as refused:
        Translator.from_pretrained("somebody/trap")
    assert "\n" not in str(refused.value)
    assert "fetching somebody/trap from the Hub of Hugging Face" in caplog.messages
    assert not (tmp_path / "sprung").exists()
    if words.endswith("trap.Network'"):  # a folder of one's own may name any class: the trap is real
        with pytest.raises(CheckpointError):
            Translator.from_pretrained(folder)
        assert (tmp_path / "sprung").exists()


def test_no_code_is_imported_for_a_tokenizer_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"{}")
    (folder / "config.json").write_text(json.dumps({"class_path": "lit_transformer.Transformer"}), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps({"class_path": "tokenizer_trap.Tokenizer"}), encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(InputError, match=r"asks for the tokenizer class 'tokenizer_trap.Tokenizer', and only those of"):
        Translator.from_pretrained("somebody/trap")
    assert not (tmp_path / "sprung").exists()
