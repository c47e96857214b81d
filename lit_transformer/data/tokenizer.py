"""Text to subword ids and back: learned from the corpus, lossless, and saved as plain data."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import unicodedata
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from tokenizers import Tokenizer

from lit_transformer.arguments import RemembersArguments
from lit_transformer.class_paths import class_path_of, import_class, is_importable
from lit_transformer.data.locks import locked
from lit_transformer.data.sentencepiece import CharacterRules, SentencePieceModel, assembled
from lit_transformer.data.side import Merges, Side, Unit
from lit_transformer.data.subwords import ModelName, check_recipe, learn
from lit_transformer.interfaces import InputError, SentencePair
from lit_transformer.json_files import read_json
from lit_transformer.vocabulary import BOS_ID, EOS_ID

logger = logging.getLogger(__name__)

_FORMAT, _VERSION = "lit_transformer.SubwordTokenizer", 1


class SubwordTokenizer(RemembersArguments):
    """Turns sentences into ids of a learned vocabulary and ids back into sentences.

    Text is brought to Unicode form NFC and cut into words that keep the space before them, so that decoding is
    joining. PAD, UNK, BOS and EOS have their fixed ids, and no text can produce them: a typed ``</s>`` is five
    ordinary characters, and so is a tag anywhere but before a source sentence. ``"bpe"`` and ``"unigram"`` spell
    characters that they did not learn as bytes, hence ``decode(encode(text))`` is the NFC form of any text (of its
    lower case with ``lowercase``). ``"wordpiece"`` loses a word with a character never seen in training, or of more
    than 200 characters, and ``"word"`` loses every word outside its vocabulary: both become ``<unk>``; all else,
    spaces included, comes back as it was.

    Training twice on the same data gives the same vocabulary. (Unigram adds up in threads, so its scores are rounded;
    two pieces equal to the last digit could still be chosen between by chance.)

    Source: Vaswani et al. 2017, section 5.1: byte-pair encoding, one vocabulary of about 37,000 for both sides
    (Sennrich et al. 2016). The word pieces there are those of Wu et al. 2016, section 4.1, which mark where a
    word starts, as here, and not where it goes on.

    Args:
        model: How the vocabulary is learned: ``"bpe"``, ``"unigram"``, ``"wordpiece"`` or whole words, ``"word"``.
            ``"sentencepiece"`` is not learned: see ``from_sentencepiece``.
        vocab_size: Number of target ids, special tokens and bytes counted. Every id is below it, also when a
            small corpus fills only a part.
        src_vocab_size: Number of source ids with ``joint: false``. Default: as many as ``vocab_size``.
        joint: Whether both sides share one vocabulary.
        lowercase: Whether upper case is given up; decoding cannot bring it back.
        min_frequency: How often a piece must be seen to be learned, in occurrences. Unigram does not use it.
        character_coverage: Part of the running text, counted in characters, whose characters get an id of their
            own; the rarest rest is spelled in bytes. Without bytes, all characters get one as far as there is room.
        byte_fallback: Whether 256 ids are kept for bytes; without them, characters not learned become UNK. Only
            ``"bpe"`` and ``"unigram"`` can do that.
        tags: Tokens such as ``<2de>`` that may stand before a source sentence, one piece each. The data module adds the
            ``src_tag`` of its training corpora.

    Raises:
        ValueError: If an argument is out of range, or ``src_vocab_size`` differs from a joint ``vocab_size``.

    Example:
        >>> tokenizer = SubwordTokenizer(vocab_size=300)
        >>> tokenizer.train([SentencePair("a cat", "eine Katze"), SentencePair("a dog", "ein Hund")])
        >>> ids = tokenizer.encode_tgt(["ein </s>"])[0]
        >>> tokenizer.pieces_tgt(ids)
        ['<s>', '▁ein', '▁', '<0x3C>', '<0x2F>', '<0x73>', '<0x3E>', '</s>']
        >>> tokenizer.decode(ids)
        'ein </s>'
    """

    vocab_size: int
    data_fingerprint: str | None
    _takes_nameless = True  # which have to be those of the recipe

    def __init__(
        self,
        model: ModelName = "bpe",
        vocab_size: int = 37_000,
        src_vocab_size: int | None = None,
        joint: bool = True,
        lowercase: bool = False,
        min_frequency: int = 2,
        character_coverage: float = 0.99999,
        byte_fallback: bool = True,
        tags: Sequence[str] = (),
    ) -> None:
        tags = list(dict.fromkeys(tags))
        self.recipe: dict[str, Any] = {name: value for name, value in locals().items() if name != "self"}
        check_recipe(**self.recipe)
        self.joint, self.lowercase = joint, lowercase
        self.vocab_size, self._src_vocab_size = vocab_size, src_vocab_size or vocab_size
        self.data_fingerprint = None
        self._sides: dict[str, Side] = {}  # src and tgt, once it is trained; one and the same if joint

    @property
    def src_vocab_size(self) -> int:
        """Number of source ids to make room for: every source id is below it."""
        return self._src_vocab_size

    @property
    def tgt_vocab_size(self) -> int:
        """Number of target ids to make room for, the same as ``vocab_size``."""
        return self.vocab_size

    @property
    def num_src_tokens(self) -> int:
        """Source ids in use, at most ``src_vocab_size``."""
        return self._side("src").num_tokens

    @property
    def num_tokens(self) -> int:
        """Target ids in use, at most ``vocab_size``."""
        return self._side("tgt").num_tokens

    @property
    def tags(self) -> list[str]:
        """The tokens that may stand before a source sentence."""
        return list(self.recipe["tags"])

    @property
    def own_arguments(self) -> dict[str, Any]:
        """What a subclass takes beside the recipe, so that files and checkpoints bring it back; as JSON has it.

        Raises:
            InputError: If it is no plain data.
        """
        known = inspect.signature(SubwordTokenizer.__init__).parameters
        own = {name: value for name, value in self.init_args.items() if name not in known}
        nameless = _listed(self._nameless)
        if nameless != _listed(tuple(self.recipe.values())[: len(nameless)]):
            raise InputError(
                f"{type(self).__name__} has arguments of its own without a name in *args: give them by name"
            )
        try:
            kept: dict[str, Any] = json.loads(json.dumps(own))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{type(self).__name__} has arguments that no file can keep ({error}): take numbers, strings, "
                "booleans, lists and dicts"
            ) from None
        if kept != _listed(own):
            raise InputError(f"{type(self).__name__} has a dict whose keys are no strings, which no file can keep")
        return kept

    @property
    def maker(self) -> dict[str, Any]:
        """Class and own arguments of a subclass, which cuts text in its own way; plain data."""
        return {"class_path": class_path_of(type(self)), "own_arguments": self.own_arguments}

    @property
    def is_trained(self) -> bool:
        """Whether there is a vocabulary to encode and decode with."""
        return bool(self._sides)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of recipe and vocabulary: the same for tokenizers that give the same ids."""
        sides = self._side("src"), self._side("tgt")
        learned = [json.loads(side.tokenizer.to_str())["model"] for side in sides]
        content = [self.recipe, *([model["vocab"], model.get("merges")] for model in learned)]
        content += [hashlib.sha256(side.rules.charsmap).hexdigest() for side in sides if side.rules]
        content += [] if type(self) is SubwordTokenizer else [self.maker]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def normalize(self, text: str) -> str:
        """The form of ``text`` that decoding gives back: NFC, in lower case if the tokenizer is."""
        if self.recipe["model"] == "sentencepiece":  # which has rules of its own
            return text
        return unicodedata.normalize("NFC", text.lower() if self.lowercase else text)

    def train(self, pairs: Iterable[SentencePair], data_fingerprint: str | None = None) -> None:
        """Learns the vocabulary from one pass over the pairs.

        Args:
            pairs: Sentence pairs; they are streamed, not kept in memory.
            data_fingerprint: What names these data, kept beside the vocabulary.

        Raises:
            ValueError: If there are no pairs, or ``vocab_size`` is too small for the characters of the corpus.
            InputError: If a subclass has arguments that are no plain data.
        """
        if not is_importable(self.maker["class_path"]):  # and its arguments are looked at before the work
            logger.warning("%s was defined in a script, so that no other program can load it", type(self).__name__)
        if self.joint:
            texts = (text for pair in pairs for text in (self._split_tags(pair.src)[1], pair.tgt))
            src = tgt = self._learn(texts, self.vocab_size, self.tags)
        else:
            with SpooledTemporaryFile(max_size=2**26, mode="w+", encoding="utf-8") as spool:
                texts = (self._split_tags(text)[1] for text in _spool_targets(pairs, spool))
                src = self._learn(texts, self.src_vocab_size, self.tags)
                spool.seek(0)
                tgt = self._learn((json.loads(line) for line in spool), self.vocab_size)
        self._put(src, tgt, rules={})
        self.data_fingerprint = data_fingerprint
        logger.info("trained a tokenizer with %d source and %d target tokens", self.num_src_tokens, self.num_tokens)

    def train_or_load(
        self, path: str | Path, make_pairs: Callable[[], Iterable[SentencePair]], data_fingerprint: str
    ) -> bool:
        """Takes the vocabulary from ``path`` if it fits, else trains it and saves it there.

        It fits if the file was made by the same recipe from the same data. Of several processes that call this at
        once one trains, under a lock on ``<path>.lock``, while the others wait and then load.

        Args:
            path: The JSON file to reuse or to write.
            make_pairs: Opens the corpus; called only if training is necessary.
            data_fingerprint: What names the data, such as a hash of files and settings.

        Returns:
            Whether this call trained.

        Raises:
            ValueError: If the file is there but is not a tokenizer of this package; it is not overwritten.
        """
        path = Path(path)
        if not self._take(path, data_fingerprint):  # needs no right to write beside the file
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            reason = self._take(path, data_fingerprint)
            if not reason:
                return False
            logger.info("training a tokenizer: %s", reason)
            self.train(make_pairs(), data_fingerprint)
            self.save(path)
        return True

    def encode_src(self, texts: Sequence[str]) -> list[list[int]]:
        """Source sentences as ids, each closed by EOS; tags before a sentence are one id each."""
        src = self._side("src")
        if not self.tags or isinstance(texts, str):
            return [[*ids, EOS_ID] for ids in src.encode(texts)]
        split = [self._split_tags(text) for text in texts]
        encoded = src.encode([text for _, text in split])
        return [[*self._tag_ids(tags), *ids, EOS_ID] for (tags, _), ids in zip(split, encoded, strict=True)]

    def encode_tgt(self, texts: Sequence[str]) -> list[list[int]]:
        """Target sentences as ids, each from BOS to EOS."""
        return [[BOS_ID, *ids, EOS_ID] for ids in self._side("tgt").encode(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """Target ids (a list, array or tensor) as text, without PAD, BOS, EOS, tags and ids that no token uses."""
        return self.decode_batch([ids])[0]

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Several rows of target ids as texts, as ``decode`` does for one."""
        return self._side("tgt").decode(rows, self.tags)

    def decode_src(self, ids: Sequence[int]) -> str:
        """Source ids as text, as ``decode`` does for the target side."""
        return self._side("src").decode([ids], self.tags)[0]

    @property
    def is_shared(self) -> bool:
        """Whether an id is the same subword on both sides, though each may have rules of its own to find it."""
        if self.joint:
            return True
        ids = range(self.num_tokens)
        return self.num_src_tokens == self.num_tokens and self.pieces_src(ids) == self.pieces_tgt(ids)

    def pieces_src(self, ids: Sequence[int]) -> list[str]:
        """One readable string for each source id, for pictures and tables; ``▁`` stands for a space."""
        return self._side("src").pieces(ids)

    def pieces_tgt(self, ids: Sequence[int]) -> list[str]:
        """One readable string for each target id, for pictures and tables; ``▁`` stands for a space."""
        return self._side("tgt").pieces(ids)

    def words_src(self, texts: Sequence[str]) -> list[tuple[list[int], list[int | None]]]:
        """The ids of ``encode_src`` and, for each, the number of its word, as ``str.split`` would count it.

        EOS, tags and signs attached to a word belong to none; tags are not counted as words either.
        """
        words = self._side("src").words([self._split_tags(text)[1] for text in texts])
        ids = self.encode_src(texts)
        return [
            (row, [*[None] * (len(row) - 1 - len(found)), *found, None]) for row, found in zip(ids, words, strict=True)
        ]

    def words_tgt(self, texts: Sequence[str]) -> list[tuple[list[int], list[int | None]]]:
        """The ids of ``encode_tgt``, and for each the number of its word, as ``words_src`` does."""
        words = self._side("tgt").words(texts)
        return [(row, [None, *found, None]) for row, found in zip(self.encode_tgt(texts), words, strict=True)]

    def units(self, texts: Sequence[str], side: str) -> list[list[Unit]]:
        """Sentences as the stretches that merges stay within, each the tuple of its ids: words, numbers, runs of signs.

        Unlike the words of ``words_src`` they include the space before them, and signs stand alone; BOS, EOS and each
        tag are units too. Joined, the units are what ``encode_src`` or ``encode_tgt`` gives.

        Args:
            texts: The sentences.
            side: ``src`` or ``tgt``.
        """
        if side == "tgt":
            return [[(BOS_ID,), *found, (EOS_ID,)] for found in self._side("tgt").units(texts)]
        split = [self._split_tags(text) for text in texts]
        units = self._side("src").units([text for _, text in split])
        return [
            [*((i,) for i in self._tag_ids(tags)), *found, (EOS_ID,)]
            for (tags, _), found in zip(split, units, strict=True)
        ]

    def merges(self, side: str) -> Merges:
        """The merges of byte-pair encoding: rank and result of each, by the two ids that it joins."""
        return self._side(side).merges()

    def to_state(self) -> dict[str, Any]:
        """Recipe and vocabulary as plain data, fit for JSON and for checkpoints loaded with ``weights_only=True``."""
        sides = {"tgt": self._side("tgt").tokenizer.to_str()}
        if not self.joint:
            sides["src"] = self._side("src").tokenizer.to_str()
        state = {
            "format": _FORMAT,
            "version": _VERSION,
            "recipe": dict(self.recipe),
            "data_fingerprint": self.data_fingerprint,
            "tokenizers": sides,
        }
        if type(self) is not SubwordTokenizer:
            state |= self.maker
        rules = {name: b64encode(one.rules.charsmap).decode() for name, one in self._sides.items() if one.rules}
        return {**state, "character_rules": rules} if rules else state

    @classmethod
    def from_state(cls, state: dict[str, Any], folder: Path | None = None) -> SubwordTokenizer:
        """The tokenizer that ``to_state`` described, of the class that it had.

        Args:
            state: What ``to_state`` gave.
            folder: Where the state was read, if no code that lies there may run.

        Raises:
            ValueError: If the state is not one of a tokenizer of this kind, or of a version that this release cannot
                read, or its class cannot be imported.
        """
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise InputError(f"not the state of a SubwordTokenizer: expected format {_FORMAT!r} in it")
        if state.get("version") != _VERSION:
            raise InputError(f"tokenizer state has version {state.get('version')!r}, this release reads {_VERSION}")
        if "class_path" in state:
            cls = import_class(str(state["class_path"]), cls, "tokenizer", folder)
        try:
            tokenizer = cls.of_recipe(state["recipe"], state.get("own_arguments", {}))
            tokenizer.data_fingerprint = state["data_fingerprint"]
            rules = state.get("character_rules", {})
            tgt = Tokenizer.from_str(state["tokenizers"]["tgt"])
            src = tgt if tokenizer.joint else Tokenizer.from_str(state["tokenizers"]["src"])
            tokenizer._put(src, tgt, {side: CharacterRules(b64decode(text)) for side, text in rules.items()})
        except InputError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exception on a vocabulary that it cannot read
            raise InputError(f"damaged tokenizer state: {error!r}") from error
        return tokenizer

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any], own_arguments: Mapping[str, Any]) -> SubwordTokenizer:
        """An untrained tokenizer of this class, whose constructor is given what it takes of both.

        Raises:
            ValueError: If it sets something of the recipe to another value.
        """
        parameters = inspect.signature(cls.__init__).parameters
        takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        given = {name: value for name, value in {**recipe, **own_arguments}.items() if takes_all or name in parameters}
        made = cls(**given)
        other = [name for name, value in recipe.items() if made.recipe[name] != value]
        if other:
            raise InputError(
                f"{cls.__name__} sets {other[0]} to {made.recipe[other[0]]} where {recipe[other[0]]} is needed; let "
                "its constructor take it, and hand it on"
            )
        return made

    @classmethod
    def from_sentencepiece(
        cls, tokens: Sequence[str], src: SentencePieceModel, tgt: SentencePieceModel, tags: Sequence[str] = ()
    ) -> SubwordTokenizer:
        """A tokenizer that cuts text as two sentencepiece models do and numbers the pieces by one vocabulary.

        Args:
            tokens: All tokens in the order of their ids: PAD, UNK, BOS, EOS, then any.
            src: How source sentences are cut.
            tgt: How target sentences are cut.
            tags: Those of the tokens that may stand before a source sentence.
        """
        tokenizer = cls("sentencepiece", len(tokens), joint=src == tgt, byte_fallback=tgt.byte_fallback, tags=tags)
        rules = {"src": CharacterRules(src.charsmap), "tgt": CharacterRules(tgt.charsmap)}
        cutter = assembled(tgt, tokens)
        tokenizer._put(cutter if src == tgt else assembled(src, tokens), cutter, rules)
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Writes one JSON file, all or nothing: a crash leaves the old file as it was."""
        path = Path(path)
        content = json.dumps(self.to_state(), ensure_ascii=False, indent=1)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with draft.open("x", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, folder: Path | None = None) -> SubwordTokenizer:
        """The tokenizer that ``save`` wrote.

        Args:
            path: The file.
            folder: A folder whose code may not run, should it hold the tokenizer's class.

        Raises:
            InputError: If there is no such file, or it is not JSON, not written by ``save``, or of another version.
        """
        try:
            state = read_json(path)
        except FileNotFoundError as error:
            raise InputError(f"no tokenizer at {path}: train one and save it there") from error
        except ValueError as error:
            raise InputError(f"{path} is not a JSON file, expected one written by SubwordTokenizer.save") from error
        try:
            return cls.from_state(state, folder)
        except ValueError as error:
            raise InputError(f"cannot load the tokenizer {path}: {error}") from error

    def _learn(self, texts: Iterable[str], vocab_size: int, tags: Sequence[str] = ()) -> Tokenizer:
        clean = (self.normalize(text) for text in texts)
        names = ("model", "min_frequency", "character_coverage", "byte_fallback")
        return learn(clean, vocab_size, **{name: self.recipe[name] for name in names}, tags=tags)

    def is_blank(self, text: str) -> bool:
        """Whether a source sentence says nothing: white space, or nothing behind its tags."""
        return not self._split_tags(text)[1].strip()

    def _split_tags(self, text: str) -> tuple[list[str], str]:
        """The tags that a source sentence begins with, and the sentence behind them."""
        found: list[str] = []
        while tag := next((tag for tag in self.recipe["tags"] if text.lstrip().startswith(tag)), None):
            found.append(tag)
            text = text.lstrip().removeprefix(tag)
            text = text if self.recipe["model"] == "sentencepiece" else text.removeprefix(" ")
        return found, text

    def _tag_ids(self, tags: Sequence[str]) -> list[int]:
        return [self._side("src").id_of(tag) for tag in tags]

    def _put(self, src: Tokenizer, tgt: Tokenizer, rules: Mapping[str, CharacterRules]) -> None:
        """Takes over what was learned, imported or loaded; sentencepiece alone brings rules, for each side."""
        one = Side(tgt, self.tgt_vocab_size, self.normalize, rules.get("tgt"))
        other = one if self.joint else Side(src, self.src_vocab_size, self.normalize, rules.get("src"))
        self._sides = {"src": other, "tgt": one}

    def _side(self, name: str) -> Side:
        if not self._sides:
            raise RuntimeError(
                "this tokenizer has no vocabulary yet: call train or train_or_load, or use SubwordTokenizer.load"
            )
        return self._sides[name]

    def _take(self, path: Path, data_fingerprint: str) -> str:
        """Takes over the vocabulary of a file that fits; else returns why it does not."""
        if not path.exists():
            return f"there is no {path} yet"
        found = SubwordTokenizer.load(path)  # of whatever class it is
        changed = [name for name, value in self.recipe.items() if found.recipe.get(name) != value]
        if changed:
            return f"{path} was made with another {', '.join(changed)}"
        if found.maker != self.maker:
            return f"{path} was made by {found.maker}, not by {self.maker}"
        if found.data_fingerprint != data_fingerprint:
            return f"{path} was made from other data"
        self._sides, self.data_fingerprint = found._sides, data_fingerprint
        logger.info("reusing the tokenizer %s", path)
        return ""


def _listed(value: Any) -> Any:
    """The same with lists in place of tuples, as JSON has it."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _spool_targets(pairs: Iterable[SentencePair], spool: Any) -> Iterator[str]:
    """The source sides, while the target sides go to a temporary file for a second reading."""
    for src, tgt in pairs:
        spool.write(json.dumps(tgt) + "\n")
        yield src
