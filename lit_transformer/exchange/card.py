"""A model pushed to the Hub of Hugging Face, with a card; safetensors only."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from lit_transformer.errors import InputError
from lit_transformer.hub import LIBRARY, check_name, speaking_plainly
from lit_transformer.translator import Translator

CARD_FILE = "README.md"
_TOLD = ("seed_everything", "model", "averaging")  # of the configuration; the rest names files of one machine


def push_to_hub(
    translator: Translator,
    name: str,
    scores: dict[str, Any] | None = None,
    languages: tuple[str, ...] = (),
    license: str | None = None,
    datasets: tuple[str, ...] = (),
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """Writes weights, configuration, tokenizer and a model card to a repository of the Hub, made if need be.

    The token is the one of ``hf auth login`` or ``HF_TOKEN``.

    Args:
        translator: Network and tokenizer.
        name: ``owner/name``.
        scores: What ``test`` wrote to ``test.scores.json`` about these very weights; the card then shows scores,
            signatures and configuration. The command ``push`` compares; here it is yours to know.
        languages: Codes for the card, source first, such as ``("en", "de")``.
        license: An identifier of the Hub, such as ``apache-2.0``; None leaves the field out.
        datasets: Names for the card; those of the Hub become links.
        private: Whether the repository is private, a new one or one that is there; None leaves it to the Hub.
        revision: Branch to write to, made if need be; None is the main one.

    Returns:
        The address of the commit.

    Raises:
        InputError: If the Hub cannot be reached or refuses, or the repository is public but should be private; the
            message says why in one sentence.
    """
    from huggingface_hub import HfApi

    check_name(name)
    api = HfApi(library_name=LIBRARY)
    with tempfile.TemporaryDirectory() as folder:
        translator.save(folder)
        card = model_card(translator, name, scores or {}, languages, license, datasets)
        (Path(folder) / CARD_FILE).write_text(card, encoding="utf-8")
        with speaking_plainly(name):
            api.create_repo(name, private=private, exist_ok=True)
            if private and not api.model_info(name).private:
                raise InputError(f"{name} is there already and public: make it private on its page, or name another")
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            done = api.upload_folder(
                repo_id=name, folder_path=folder, revision=revision, commit_message="Upload with lit-transformer"
            )
    return str(done.commit_url)


def model_card(
    translator: Translator,
    name: str,
    scores: dict[str, Any],
    languages: tuple[str, ...] = (),
    license: str | None = None,
    datasets: tuple[str, ...] = (),
) -> str:
    """The text of a model card: YAML for the Hub's search, then what people read.

    It says only what is known: without scores there is no table, without a licence no licence.

    Args:
        translator: Network and tokenizer.
        name: ``owner/name``.
        scores: What ``test`` wrote to ``test.scores.json`` about these very weights; empty if nothing is known.
        languages: Codes, source first.
        license: An identifier of the Hub; None leaves the field out.
        datasets: Names of what it was trained on.
    """
    from huggingface_hub import EvalResult, ModelCardData

    found = scores.get("scores", {})
    title = name.split("/")[-1]
    results = [
        EvalResult("translation", "own-test-set", "test set", metric, _value(entry)) for metric, entry in found.items()
    ]
    data = ModelCardData(
        language=list(languages) or None,
        license=license,
        library_name=LIBRARY,
        pipeline_tag="translation",
        tags=["translation", "transformer", "lit-transformer"],
        datasets=list(datasets) or None,
        metrics=list(found) or None,
        eval_results=results or None,
        model_name=title if results else None,
    )
    pair = f" from {languages[0]} to {', '.join(languages[1:])}" if len(languages) > 1 else ""
    network = translator.network
    size = sum(parameter.numel() for parameter in network.parameters())
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {title}",
        f"A Transformer for translation{pair} with {size:,} parameters, for lit-transformer.",
        "```python\nfrom lit_transformer import Translator\n\n"
        f'print(Translator.from_pretrained("{name}")(["..."]))\n```',
    ]
    if datasets:
        parts.append(f"Trained on: {', '.join(datasets)}.")
    if found:
        rows = "\n".join(
            f"| {metric} | {_value(entry):.1f} | `{_signature(entry)}` |" for metric, entry in found.items()
        )
        parts.append(f"## Scores\n\n| metric | score | signature |\n|---|---|---|\n{rows}")
        if corpora := scores.get("corpora"):
            parts.append(_table(corpora))
    parts.append(f"## Network\n\n```json\n{json.dumps(network.spec, indent=2)}\n```")
    config = {key: value for key, value in scores.get("config", {}).items() if key in _TOLD}
    if config:
        parts.append(f"## Training\n\n```json\n{json.dumps(config, indent=2, ensure_ascii=False)}\n```")
    return "\n\n".join(parts) + "\n"


def _table(corpora: list[dict[str, Any]]) -> str:
    """The scores of each corpus."""
    kinds = list(corpora[0]["scores"])
    lines = [f"| corpus | sentences | {' | '.join(kinds)} |", "|---" * (2 + len(kinds)) + "|"]
    for one in corpora:
        values = " | ".join(f"{_value(one['scores'][kind]):.1f}" for kind in kinds)
        lines.append(f"| {one['name']} | {one['num_sentences']:,} | {values} |")
    return "\n".join(lines)


def _value(entry: Any) -> float:
    return float(entry["value"] if isinstance(entry, dict) else entry)


def _signature(entry: Any) -> str:
    text = str(entry.get("signature", "")) if isinstance(entry, dict) else ""
    return text.replace("|", "\\|")  # or it would end the cell of the table
