"""Learning a subword vocabulary: BPE, Unigram, word pieces or words, laid out around our special ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lit_transformer.interfaces import InputError
from lit_transformer.vocabulary import SPECIAL_TOKENS, UNK_ID, check_tag

ModelName = Literal["bpe", "unigram", "wordpiece", "word", "sentencepiece"]

_UNKNOWN = SPECIAL_TOKENS[UNK_ID]
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # the spelling that `tokenizers` looks for

# A word, a number, a run of signs or of white space, each with the one space before it. No chunk mixes signs with
# letters, so that no text can be learned or read as "<pad>", "</s>" or the byte "<0x41>", whatever people type.
_CHUNK = (
    r" ?\p{L}[\p{L}\p{M}\x{200C}\x{200D}]*(?:['’]\p{L}[\p{L}\p{M}]*)*"  # don't, l'homme; joiners inside a word
    r"| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?=\s\S)"  # leaves the last space to the word behind it
    r"|\s+"
)
_SPARE_MERGES = 4096  # learned beyond the wanted size, because rare characters give their places back afterwards
_MAX_WORDPIECE_WORD = 200  # characters; the greedy search takes time that grows with the cube
_CHARACTER_STEP = 1e-4  # nats between the scores that the Unigram trainer gives to characters it had pruned
_SCORE_DIGITS = 6  # Unigram sums in an order that changes between runs: digits after these are noise


def _reserved(model: ModelName, byte_fallback: bool) -> list[str]:
    """The tokens before everything learned: the special ones, then the 256 bytes of models that can spell with them."""
    return [*SPECIAL_TOKENS, *(_BYTES if byte_fallback and model in ("bpe", "unigram") else ())]


def check_recipe(
    model: ModelName,
    vocab_size: int,
    src_vocab_size: int | None,
    joint: bool,
    lowercase: bool,
    min_frequency: int,
    character_coverage: float,
    byte_fallback: bool,
    tags: Sequence[str],
) -> None:
    """Raises ValueError unless the arguments of ``SubwordTokenizer`` are in range and fit together."""
    if model not in get_args(ModelName):
        raise ValueError(f"model must be one of {', '.join(get_args(ModelName))}, got {model!r}")
    if joint and src_vocab_size not in (None, vocab_size):
        raise ValueError(
            f"src_vocab_size={src_vocab_size} differs from vocab_size={vocab_size}, but the vocabulary is shared: "
            "leave it out, or set joint to false"
        )
    least = len(_reserved(model, byte_fallback)) + len(set(map(check_tag, tags))) + 1
    for name, size in (("vocab_size", vocab_size), ("src_vocab_size", src_vocab_size)):
        if size is not None and size < least:
            raise ValueError(f"{name} must be at least {least} (special tokens, bytes, tags and one piece), got {size}")
    if min_frequency < 1:
        raise ValueError(f"min_frequency must be at least 1, got {min_frequency}")
    if not 0.0 < character_coverage <= 1.0:
        raise ValueError(f"character_coverage must be above 0 and at most 1, got {character_coverage}")


def learn(
    texts: Iterable[str],
    vocab_size: int,
    model: ModelName,
    min_frequency: int,
    character_coverage: float,
    byte_fallback: bool,
    tags: Sequence[str] = (),
) -> Tokenizer:
    """Learns a vocabulary of at most ``vocab_size`` ids from one pass over normalised sentences.

    The ids are special tokens, bytes, tags, characters in code point order, then pieces, best first. The arguments are
    those of ``SubwordTokenizer``.

    Raises:
        ValueError: If there is no text, or Unigram has fewer ids than the text has characters.
    """
    if model == "sentencepiece":
        raise InputError("a sentencepiece vocabulary is imported with its model, not learned: take bpe or unigram")
    first = [*_reserved(model, byte_fallback), *tags]
    room = vocab_size - len(first)
    characters: Counter[str] = Counter()

    def counted() -> Iterator[str]:
        for text in texts:
            characters.update(" " + text)
            yield text

    learner, trainer = _learner(model, room, min_frequency)
    try:
        learner.train_from_iterator(counted(), trainer)
    except Exception as error:  # the only type that `tokenizers` raises
        if "not large enough to contain all chars" not in str(error):
            raise
        raise InputError(
            f"vocab_size={vocab_size} leaves {room} ids, too few for the {len(characters)} different characters of the "
            "text, all of which a unigram vocabulary needs: raise it, or take the bpe model"
        ) from error
    if not characters:
        raise InputError("cannot learn a vocabulary: the corpus gave no sentence pairs")
    if model != "word":
        has_bytes = len(_reserved(model, byte_fallback)) > len(SPECIAL_TOKENS)
        first += _frequent(characters, character_coverage if has_bytes else 1.0, room)
    learned = json.loads(learner.to_str())["model"]
    return _assembled(_model(model, learned, first, vocab_size, byte_fallback))


def _learner(model: ModelName, room: int, min_frequency: int) -> tuple[Tokenizer, Any]:
    """An empty tokenizer and the trainer that fills it with about ``room`` pieces."""
    limits: dict[str, Any] = {"min_frequency": min_frequency, "show_progress": False, "special_tokens": []}
    if model == "unigram":
        del limits["min_frequency"]
        return _assembled(models.Unigram()), trainers.UnigramTrainer(vocab_size=room, unk_token=None, **limits)
    if model == "word":
        return _assembled(models.WordLevel()), trainers.WordLevelTrainer(vocab_size=room, **limits)
    return _assembled(models.BPE()), trainers.BpeTrainer(vocab_size=room + _SPARE_MERGES, **limits)


def _frequent(counts: Counter[str], coverage: float, room: int) -> list[str]:
    """The characters that make up ``coverage`` of the text, at most ``room`` of them, in code point order."""
    wanted, seen, kept = coverage * counts.total(), 0, []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:room]:
        if seen >= wanted:
            break
        kept.append(character)
        seen += count
    return sorted(kept)


def _model(name: ModelName, learned: dict[str, Any], first: list[str], vocab_size: int, byte_fallback: bool) -> Any:
    """The model of what was learned, with the pieces of ``first`` at the front and ``vocab_size`` in all at most."""
    if name == "bpe":
        vocab, merges = _merged(learned["merges"], first, vocab_size)
        return models.BPE(vocab=vocab, merges=merges, unk_token=_UNKNOWN, byte_fallback=byte_fallback)
    if name == "unigram":
        return models.Unigram(_scored(learned["vocab"], first, vocab_size), UNK_ID, byte_fallback)
    by_age = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    if name == "word":
        return models.WordLevel(_numbered([*first, *by_age], vocab_size), unk_token=_UNKNOWN)
    pieces = [*first, *(piece for piece in by_age if len(piece) > 1)]
    return models.WordPiece(
        _numbered(pieces, vocab_size),
        unk_token=_UNKNOWN,
        continuing_subword_prefix="",
        max_input_chars_per_word=_MAX_WORDPIECE_WORD,
    )


def _numbered(pieces: list[str], vocab_size: int) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces[:vocab_size])}


def _merged(
    learned: list[list[str]], first: list[str], vocab_size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The learned merges, best first, that the characters in ``first`` allow and for which there is room."""
    vocab, merges = _numbered(first, vocab_size), []
    for left, right in learned:
        has_room = len(vocab) < vocab_size or left + right in vocab
        if has_room and left in vocab and right in vocab:
            vocab.setdefault(left + right, len(vocab))
            merges.append((left, right))
    return vocab, merges


def _scored(learned: list[list[Any]], first: list[str], vocab_size: int) -> list[tuple[str, float]]:
    """Pieces with their log probabilities, best first after ``first``; specials and bytes are never looked up."""
    scores = {piece: round(score, _SCORE_DIGITS) for piece, score in learned}
    lowest = min(scores.values())
    floor = lowest + _CHARACTER_STEP * sum(len(piece) == 1 for piece in scores)
    for piece in [*first, *scores]:  # the trainer lines rare characters up in a random order, a step apart
        if len(piece) == 1 and scores.get(piece, lowest) < floor:
            scores[piece] = lowest
    rest = sorted((piece for piece in scores if len(piece) > 1), key=lambda piece: (-scores[piece], piece))
    return [(piece, scores.get(piece, lowest)) for piece in [*first, *rest][:vocab_size]]


def _assembled(model: Any) -> Tokenizer:
    """The model between cutting and joining; every piece carries its own space, so joining is all there is."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Prepend(" ")  # the first word looks like the others
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_CHUNK), "isolated")
    unknown = decoders.Replace(_UNKNOWN, f" {_UNKNOWN}")
    tokenizer.decoder = decoders.Sequence(
        [unknown, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer
