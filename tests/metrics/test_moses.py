"""BLEU on Moses tokens equals a computation by hand: sacremoses, and sacrebleu on its tokens."""

import pickle
import re
import sys

import pytest
import sacrebleu
from sacremoses import MosesPunctNormalizer, MosesTokenizer

from lit_transformer.interfaces import InputError
from lit_transformer.metrics import CorpusBLEU, MosesBLEU

REFERENCES = [
    "Die E-Mail-Adresse von Dr. Meier steht im Anhang, sagte er.",
    "»Das ist ein Nord-Süd-Konflikt«, schrieb die Zeitung am 3. Mai.",
    "Zwei Männer im roten T-Shirt reden über den S&P-500-Index.",
    "Der Zug fährt um 10 - 11 Uhr - oder später.",
]
HYPOTHESES = [
    "Die E-Mail-Adresse von Dr. Meier ist im Anhang, sagte er.",
    "„Das ist ein Nord-Süd-Konflikt”, schrieb eine Zeitung am 3. Mai.",
    "Zwei Männer in rotem T-Shirt reden über den S&P-500-Index.",
    "Der Zug fährt um 10 - 11 Uhr oder später.",
]


def by_hand(texts: list[str], split: bool = False, small: bool = False, normal: bool = False) -> list[str]:
    tokenizer, normalizer = MosesTokenizer("de"), MosesPunctNormalizer("de")
    lines = [text.lower() for text in texts] if small else texts
    lines = [normalizer.normalize(line) for line in lines] if normal else lines
    lines = [" ".join(tokenizer.tokenize(line)) for line in lines]
    return [re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", line) for line in lines] if split else lines


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("normal", [False, True])
def test_the_score_equals_a_computation_by_hand(split: bool, small: bool, normal: bool) -> None:
    metric = MosesBLEU("de", split_hyphens=split, lowercase=small, normalize=normal)
    for pair in zip(HYPOTHESES, REFERENCES, strict=True):
        metric.update(*([text] for text in pair))
    hypotheses, references = (by_hand(texts, split, small, normal) for texts in (HYPOTHESES, REFERENCES))
    scorer = sacrebleu.BLEU(tokenize="none", force=True, smooth_method="none")
    expected = scorer.corpus_score(hypotheses, [references]).score
    assert 5 < expected < 95
    assert metric.compute().item() == pytest.approx(expected, abs=1e-9)
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()


def test_hyphens_are_split_as_the_script_does() -> None:
    assert MosesBLEU("de", split_hyphens=True).preprocess("Nord-Süd-Konflikt um 10 - 11 a-b-c") == (
        "Nord ##AT##-##AT## Süd ##AT##-##AT## Konflikt um 10 - 11 a ##AT##-##AT## b-c"  # s/(\S)-(\S)/../g has used b
    )
    assert MosesBLEU("de").preprocess("Dr. Nord-Süd.") == "Dr. Nord-Süd ."


def test_the_kinds_of_bleu_differ() -> None:
    kinds = [CorpusBLEU(), MosesBLEU("de"), MosesBLEU("de", split_hyphens=True), MosesBLEU("de", normalize=True)]
    for kind in kinds:
        kind.update(HYPOTHESES, REFERENCES)
    assert len({round(kind.compute().item(), 3) for kind in kinds}) == 4


def test_the_signature_says_how_tokens_are_made() -> None:
    signature = MosesBLEU("de", split_hyphens=True, lowercase=True, normalize=True).signature
    assert re.fullmatch(
        r"nrefs:1\|case:lc\|eff:no\|tok:moses-de\+norm\+atat\|smooth:none\|sacremoses:[\d.]+\|version:[\d.]+", signature
    )
    assert "case:mixed|eff:no|tok:moses-en|" in MosesBLEU("en").signature


def test_no_match_of_four_words_is_no_score() -> None:
    metric = MosesBLEU("en")
    metric.update(["a cat sat there"], ["a dog sat there"])
    assert metric.compute().item() == 0


def test_without_sacremoses_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(InputError, match=r"pip install \"lit-transformer\[moses\]\""):
        MosesBLEU("de")
