"""BLEU on the tokens of Moses, as papers before sacrebleu report it.

sacremoses comes with the extra ``moses``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version

from lit_transformer.interfaces import InputError
from lit_transformer.metrics.corpus import CorpusBLEU

_HYPHEN = re.compile(r"(\S)-(\S)")


class MosesBLEU(CorpusBLEU):
    """BLEU on the tokens of Moses, for comparison with papers that report it; its figures are not sacrebleu's.

    Two kinds are common. "Attention Is All You Need" and others on WMT14 English-German split words at hyphens too:
    ``MosesBLEU("de", split_hyphens=True)`` does what ``get_ende_bleu.sh`` of tensor2tensor does, except that it
    tokenises the references as well. The papers on Multi30k ignore case: ``MosesBLEU("de", lowercase=True,
    normalize=True)`` makes the corpus's own ``lc.norm.tok`` files out of its plain text.

    In a configuration, beside the usual scores::

        bleu:
          metric:
            - class_path: lit_transformer.MosesBLEU
              init_args: {lang: de, split_hyphens: true, name: paper_bleu}
            - class_path: lit_transformer.MosesBLEU
              init_args: {lang: de, lowercase: true, normalize: true, name: multi30k_bleu}

    As in ``multi-bleu.perl`` nothing is smoothed: without any match of four words the score is 0.

    Args:
        lang: Language of the target text, for its abbreviations and apostrophes: ``de``, ``en``, ``fr`` ...
        split_hyphens: Whether ``a-b`` counts as the three words ``a ##AT##-##AT## b``.
        lowercase: Whether the text is put into small letters first.
        normalize: Whether quotation marks, dashes and spaces are first made the same by Moses's rules.
        name: What the score is logged as; two scores of one evaluation need two names.

    Raises:
        InputError: If sacremoses is not installed.

    Example:
        >>> bleu = MosesBLEU("de", split_hyphens=True)
        >>> bleu.preprocess("Die E-Mail kam nicht.")
        'Die E ##AT##-##AT## Mail kam nicht .'
    """

    def __init__(
        self,
        lang: str,
        split_hyphens: bool = False,
        lowercase: bool = False,
        normalize: bool = False,
        name: str = "moses_bleu",
    ) -> None:
        super().__init__(tokenize="none", smooth_method="none", name=name)
        try:
            from sacremoses import MosesPunctNormalizer, MosesTokenizer  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "sacremoses":
                raise
            raise InputError(
                'MosesBLEU needs sacremoses, which is not installed: pip install "lit-transformer[moses]"'
            ) from error
        self.lang, self.split_hyphens, self.lowercase = lang, split_hyphens, lowercase
        self._tokenizer = MosesTokenizer(lang)
        self._normalizer = MosesPunctNormalizer(lang) if normalize else None

    def preprocess(self, text: str) -> str:
        """The tokens that are counted, with spaces between them."""
        text = text.lower() if self.lowercase else text
        text = self._normalizer.normalize(text) if self._normalizer else text
        tokens: str = self._tokenizer.tokenize(text, return_str=True)
        return _HYPHEN.sub(r"\1 ##AT##-##AT## \2", tokens) if self.split_hyphens else tokens

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[list[int]]:
        """The counts of each sentence."""
        return super().count(*([self.preprocess(text) for text in texts] for texts in (hypotheses, references)))

    @property
    def signature(self) -> str:
        """The signature of sacrebleu, with how the tokens were made in place of ``tok:none``."""
        steps = [
            f"moses-{self.lang}",
            *(["norm"] if self._normalizer else []),
            *(["atat"] if self.split_hyphens else []),
        ]
        case = "case:lc" if self.lowercase else "case:mixed"
        plain = super().signature.replace("case:mixed", case).replace("tok:none", f"tok:{'+'.join(steps)}")
        return plain.replace("|version:", f"|sacremoses:{version('sacremoses')}|version:")
