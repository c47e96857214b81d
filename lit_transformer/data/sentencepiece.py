"""Unigram models of the package sentencepiece as tokenizers of ours, read without that package."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from lit_transformer.interfaces import InputError
from lit_transformer.vocabulary import SPECIAL_TOKENS, UNK_ID

HIDDEN = "\ue000"  # before a token that no text of this side can be read as; its place in Unicode is for private use

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM = 1


class SentencePieceModel(NamedTuple):
    """What a ``.spm`` file says.

    Args:
        scores: The pieces that text is cut into, with their log probabilities.
        charsmap: Rules that replace characters, in sentencepiece's own form; empty for none.
        add_dummy_prefix: Whether a sentence begins with a space.
        remove_extra_whitespaces: Whether spaces at the ends, and all but one in between, are dropped.
        byte_fallback: Whether unknown characters are spelled in bytes.
    """

    scores: dict[str, float]
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    byte_fallback: bool


def read_model(content: bytes) -> SentencePieceModel:
    """The model in the bytes of a ``.spm`` file.

    Raises:
        InputError: If it is none, or of a kind that cannot be represented exactly: another algorithm than unigram,
            symbols that users have defined, or spaces that follow their words.
    """
    try:
        fields = list(_fields(content))
        pieces = [dict(_fields(value)) for number, value in fields if number == 1]
        trainer, normalizer = (dict(_fields(dict(fields).get(number, b""))) for number in (2, 3))
        scores = {}
        for piece in pieces:
            kind, text = piece.get(3, _NORMAL), piece[1].decode("utf-8")
            if kind == _USER_DEFINED:
                raise InputError(f"it has symbols defined by users, such as {text!r}, which cannot be read exactly")
            if kind in (_NORMAL, _BYTE):
                scores[text] = struct.unpack("<f", piece.get(2, b"\0\0\0\0"))[0]
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, struct.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("it is not a sentencepiece model") from None
    if trainer.get(3, _UNIGRAM) != _UNIGRAM or not scores:
        raise InputError("it is not a unigram model, the only kind of sentencepiece model that can be read exactly")
    if trainer.get(24, 0):
        raise InputError("it writes spaces after words (treat_whitespace_as_suffix), which cannot be read exactly")
    return SentencePieceModel(
        scores, normalizer.get(2, b""), bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)), bool(trainer.get(35, 0))
    )


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer: whole numbers, four or eight bytes, or any bytes."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(content, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(content, place)
        else:
            size = {1: 8, 5: 4}[kind]
        if place + size > len(content):
            raise ValueError("the file is cut short")
        yield key >> 3, content[place : place + size]
        place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def assembled(model: SentencePieceModel, tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer that cuts text like a model and numbers the pieces like a vocabulary.

    Pieces that the vocabulary lacks stand behind it: they take part in cutting, and become UNK afterwards.

    Args:
        model: How text is cut.
        tokens: All tokens in the order of their ids, the first four ours.
    """
    scores = model.scores
    vocab = [(token, scores[token]) if token in scores else (HIDDEN + token, 0.0) for token in tokens]
    for place, special in enumerate(SPECIAL_TOKENS):
        vocab[place] = (HIDDEN + special, 0.0)
    known = set(tokens[len(SPECIAL_TOKENS) :])
    vocab += [(piece, score) for piece, score in scores.items() if piece not in known]
    tokenizer = Tokenizer(models.Unigram(vocab, UNK_ID, model.byte_fallback))
    steps: list[Any] = []  # the charsmap is applied before, see CharacterRules
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(" ")] if model.add_dummy_prefix else []
    steps += [normalizers.Replace(" ", "▁")]
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("(?<!▁)▁++$"), "")]  # there a typed one goes as well
    tokenizer.normalizer = normalizers.Sequence(steps)
    unknown = decoders.Replace(HIDDEN + SPECIAL_TOKENS[UNK_ID], f"▁{SPECIAL_TOKENS[UNK_ID]}")
    plain = [decoders.Replace(HIDDEN, ""), decoders.Replace("▁", " ")]
    tokenizer.decoder = decoders.Sequence(
        [unknown, *plain, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


class CharacterRules:
    """Replaces characters as sentencepiece does: at each place by the rule for the longest match.

    The package ``tokenizers`` has these rules too, but applies them to letters with their accents at once, and loses
    accents where a rule is for the letter alone.

    Args:
        charsmap: The rules as they stand in a model: a double array over UTF-8 bytes, then what to write.

    Raises:
        InputError: If the rules are shorter than they say.
    """

    def __init__(self, charsmap: bytes) -> None:
        self.charsmap = charsmap
        try:
            (size,) = struct.unpack_from("<I", charsmap) if charsmap else (0,)
            self._units = struct.unpack_from(f"<{size // 4}I", charsmap, 4) if size else ()
        except struct.error:
            raise InputError("the character rules of the sentencepiece model are damaged") from None
        self._written = charsmap[4 + size :]

    def __call__(self, text: str) -> str:
        """The text with all rules applied, from left to right."""
        if not self._units:
            return text
        content, place, parts = text.encode("utf-8", "surrogatepass"), 0, []
        while place < len(content):
            found, length = self._longest(content, place)
            if length:
                parts.append(self._written[found : self._written.index(0, found)])
            else:
                length = 1 + sum(content[place] >= least for least in (0xC0, 0xE0, 0xF0))
                parts.append(content[place : place + length])
            place += length
        return b"".join(parts).decode("utf-8", "surrogatepass")

    def places(self, text: str) -> list[int | None] | None:
        """For each character of ``self(text)`` the number of the word of ``text`` it comes from, as split counts them.

        Rules may write spaces inside a word (for U+200B, or before the accent of U+00B4) and drop white space between
        words, so words cannot be counted afterwards. None if a rule reaches across white space.
        """
        parts = re.split(r"(\s+)", text)  # words at even places, the first and last perhaps empty
        written, places, number = [self(part) for part in parts], [], -1
        for index, part in enumerate(written):
            number += index % 2 == 0 and parts[index] != ""
            places += [None if index % 2 or character.isspace() else number for character in part]
        return places if "".join(written) == self(text) else None

    def _longest(self, content: bytes, start: int) -> tuple[int, int]:
        """Where what to write begins, and how many bytes it replaces; 0 if there is no rule."""
        units = self._units
        node, best = _offset(units[0]), (0, 0)
        for place in range(start, len(content)):
            node ^= content[place]
            unit = units[node] if node < len(units) else 0
            if unit & 0x800000FF != content[place]:
                break
            node ^= _offset(unit)
            if unit >> 8 & 1:
                best = units[node] & 0x7FFFFFFF, place - start + 1
        return best


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 512) >> 6)


def ids_in_vocabulary(tokenizer: Tokenizer, text: str, ids: list[int], vocab_size: int) -> list[int]:
    """The ids of a sentence, with UNK for pieces behind the vocabulary.

    Characters that the model does not know may still be a token, one of the other side: Marian looks them up too.
    """
    if UNK_ID in ids:
        spellings = tokenizer.encode(text, add_special_tokens=False).tokens
        known = [tokenizer.token_to_id(HIDDEN + piece) for piece in spellings]
        ids = [(found or UNK_ID) if number == UNK_ID else number for number, found in zip(ids, known, strict=True)]
    return [number if number < vocab_size else UNK_ID for number in ids]
