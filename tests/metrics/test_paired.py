"""Comparisons equal sacrebleu's command of the same name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sentences import corpus

from lit_transformer.metrics import paired_bootstrap


def systems() -> tuple[dict[str, list[str]], list[str]]:
    """Three systems: one that is clearly better than the first, and one that is better here and worse there."""
    first, references = corpus(60)
    better = [references[place] if place % 3 else line for place, line in enumerate(first)]
    other = [references[place] if place % 12 == 0 else line for place, line in enumerate(first)]
    other[5::12] = ["so"] * 5
    return {"first": first, "better": better, "other": other}, references


def test_figures_equal_those_of_sacrebleus_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    outputs, references = systems()
    for name, lines in {**outputs, "reference": references}.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = "-m sacrebleu reference -i first better other -m bleu chrf --paired-bs --paired-bs-n 300 -f text -w 4"
    done = subprocess.run([sys.executable, *command.split()], cwd=tmp_path, capture_output=True, text=True, check=True)
    figures = re.findall(r"([\d.]+) \(([\d.]+) ± ([\d.]+)\)", done.stdout)
    p_values = re.findall(r"\(p = ([\d.]+)\)", done.stdout)
    found = paired_bootstrap(outputs, references, num_resamples=300)
    ours = [found[score].systems[name] for name in outputs for score in ("BLEU", "chrF")]
    assert len(figures) == len(ours) == 6
    for one, expected in zip(ours, figures, strict=True):
        assert one[:3] == pytest.approx([float(figure) for figure in expected], abs=1e-4)
    assert [one.p_value for one in ours] == [None, None, *(pytest.approx(float(p), abs=1e-4) for p in p_values)]
    assert found["BLEU"].signature.startswith("nrefs:1|bs:300|seed:12345|case:mixed|eff:no|tok:13a|")
    p_of = {name: found["BLEU"].systems[name].p_value or 0 for name in outputs}
    assert p_of["better"] == pytest.approx(1 / 301)
    assert p_of["other"] > 0.05


def test_a_copy_is_not_better() -> None:
    outputs, references = systems()
    found = paired_bootstrap({"one": outputs["first"], "copy": outputs["first"]}, references, num_resamples=100)
    assert [found[name].systems["copy"].p_value for name in ("BLEU", "chrF")] == [1, 1]


def test_settings_reach_bleu() -> None:
    outputs, references = systems()
    found = paired_bootstrap(outputs, references, tokenize="char", lowercase=True, num_resamples=10)
    assert "|case:lc|eff:no|tok:char|" in found["BLEU"].signature
    assert "|case:lc|" in found["chrF"].signature


def test_bad_use_is_named() -> None:
    outputs, references = systems()
    with pytest.raises(ValueError, match="at least two systems, got 1"):
        paired_bootstrap({"one": references}, references)
    with pytest.raises(ValueError, match="short has 59 sentences, but there are 60 references"):
        paired_bootstrap({**outputs, "short": references[1:]}, references)
    with pytest.raises(ValueError, match="tokenize must be one of"):
        paired_bootstrap(outputs, references, tokenize="words")
