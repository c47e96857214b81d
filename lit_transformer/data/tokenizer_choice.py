"""Which tokenizer a run uses: one that was given, one from a file, one of a checkpoint, or one made from the text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lit_transformer.data.textfiles import CorpusError, expand
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import InputError, SentencePair

logger = logging.getLogger(__name__)


class TokenizerChoice:
    """The tokenizer of a data module, and the rules by which another one may take its place.

    Args:
        given: A recipe, or a tokenizer that is trained already; None means byte-pair encoding.
        path: The file that the user names; it is never made anew.
        vocab_size: Size that the target vocabulary must have, in tokens. A recipe without a size of its own takes it.
        src_vocab_size: The same of a source vocabulary; None means that both sides share one.
        tags: What may stand before the sources of the training text; a recipe takes them over.

    Attributes:
        tokenizer: The choice so far; perhaps only a recipe.

    Raises:
        CorpusError: If ``given`` has other sizes.
    """

    def __init__(
        self,
        given: SubwordTokenizer | None,
        path: str | None,
        vocab_size: int,
        src_vocab_size: int | None,
        tags: Sequence[str],
    ) -> None:
        self.path = None if path is None else expand(path)
        self.vocab_size, self.src_vocab_size = vocab_size, src_vocab_size
        self._has_recipe, self._tags = given is not None, tags
        self._refused: InputError | None = None  # what is wrong with a file that was found and not named
        self._is_given = path is not None or (given is not None and given.is_trained)
        self.tokenizer = given or SubwordTokenizer()
        if given is not None or path is None:  # else there may be no need of a recipe
            self.tokenizer = self._completed(self.tokenizer)
            self._check_sizes(self.tokenizer)

    def make(self, folder: str, pairs: Callable[[], Iterable[SentencePair]], fingerprint: Callable[[], str]) -> None:
        """Takes the named file if it is there; else the tokenizer is made from the text, or taken from an earlier run.

        Args:
            folder: Where ``tokenizer.json`` stands if no file is named.
            pairs: Opens the training text; called only if the tokenizer must be made from it.
            fingerprint: What names that text; not called if the tokenizer is trained or its file was named.

        Raises:
            CorpusError: If the named file holds another tokenizer than was asked for.
        """
        if self.tokenizer.is_trained:
            return
        if self.path and Path(self.path).exists():
            self._take_file(Path(self.path))
        else:
            self.tokenizer = self._completed(self.tokenizer)
            self.tokenizer.train_or_load(self._file(folder), pairs, fingerprint())

    def find(self, folder: str) -> None:
        """Takes the tokenizer from the named file, or from that in ``folder``; without one a checkpoint may bring it.

        Args:
            folder: Where ``tokenizer.json`` stands if no file is named.

        Raises:
            CorpusError: If the file holds another tokenizer than was asked for.
        """
        if self.tokenizer.is_trained or not (path := self._file(folder)).exists():
            return
        try:
            self._take_file(path)
        except InputError as error:
            if self.path:
                raise
            logger.info("%s is not used: %s", path, error)  # it was not named, and a checkpoint may bring the right one
            self._refused = error

    @property
    def trained(self) -> SubwordTokenizer | None:
        """The tokenizer, or None if there is none yet.

        Raises:
            CorpusError: If a file is named for it that is not there, or what was found is not what was asked for.
        """
        if not self.tokenizer.is_trained and self.path:
            raise CorpusError(f"tokenizer_path={self.path!r} does not exist, and only fit can make it")
        if not self.tokenizer.is_trained and self._refused:
            raise self._refused
        return self.tokenizer if self.tokenizer.is_trained else None

    def adopt(self, saved: SubwordTokenizer) -> None:
        """Takes the tokenizer of a checkpoint.

        Raises:
            CorpusError: If another one was given, or its sizes are not those that are set.
        """
        if self._is_given and self.tokenizer.is_trained and self.tokenizer.fingerprint != saved.fingerprint:
            raise CorpusError(
                "the given tokenizer is not the one that the checkpoint was trained with: leave out tokenizer and "
                "tokenizer_path to use the one inside the checkpoint"
            )
        self._check_sizes(saved)
        self.tokenizer = saved

    def resume(self, saved: SubwordTokenizer) -> None:
        """Takes the tokenizer of a checkpoint whose training is to go on, before another one could be made.

        One that was given is compared once it has been read.

        Raises:
            CorpusError: If the recipe is another one now, or the sizes are.
        """
        if self._is_given:
            return
        self._check_sizes(saved)
        if self._is_of_another_recipe(saved):
            names = [name for name, value in saved.recipe.items() if self.tokenizer.recipe.get(name) != value]
            raise CorpusError(
                f"the tokenizer of the checkpoint was made by another recipe than data.tokenizer says now "
                f"({', '.join(names) or 'its class'}): leave that as it was, or begin a run anew"
            )
        self.adopt(saved)

    def _file(self, folder: str) -> Path:
        return Path(self.path or Path(folder) / "tokenizer.json")

    def _completed(self, tokenizer: SubwordTokenizer) -> SubwordTokenizer:
        """The recipe with the sizes that are set, where it does not set its own, and with the tags."""
        recipe = dict(tokenizer.recipe)
        recipe["tags"] = list(dict.fromkeys([*recipe["tags"], *self._tags]))
        if recipe["vocab_size"] == SubwordTokenizer().vocab_size:
            recipe["vocab_size"] = self.vocab_size
        if self.src_vocab_size is not None and recipe["src_vocab_size"] is None:
            recipe["src_vocab_size"], recipe["joint"] = self.src_vocab_size, False
        if tokenizer.is_trained or recipe == tokenizer.recipe:
            return tokenizer
        return tokenizer.of_recipe(recipe, tokenizer.own_arguments)

    def _take_file(self, path: Path) -> None:
        found = SubwordTokenizer.load(path)
        self._check_sizes(found)
        if self._is_of_another_recipe(found):
            raise CorpusError(f"{path} was made by another recipe than tokenizer says: leave out one of the two")
        self.tokenizer = found

    def _is_of_another_recipe(self, found: SubwordTokenizer) -> bool:
        """Whether a recipe was given, and it is not the one by which the tokenizer was made."""
        given = self.tokenizer
        return self._has_recipe and (found.recipe, found.maker) != (given.recipe, given.maker)

    def _check_sizes(self, tokenizer: SubwordTokenizer) -> None:
        wanted = (self.vocab_size, self.src_vocab_size)
        got = (tokenizer.vocab_size, None if tokenizer.joint else tokenizer.src_vocab_size)
        if got != wanted:
            raise CorpusError(
                f"the tokenizer has vocab_size={got[0]} and src_vocab_size={got[1]} (None: one shared vocabulary), but "
                f"the data module is set to {wanted[0]} and {wanted[1]}: make them agree"
            )
