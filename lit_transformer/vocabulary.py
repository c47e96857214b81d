"""The four token ids that every part of the package agrees on."""

import re

PAD_ID = 0
UNK_ID = 1
BOS_ID = 2
EOS_ID = 3

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")  # spelled in the order of their ids

_TAG = re.compile(r"<[^\s<>]*\w[^\s<>]*>|>>[^\s<>]*\w[^\s<>]*<<")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def check_tag(tag: str) -> str:
    """The tag, if it is a word in angle brackets that is no token of another kind.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_tag("<2de>")
        '<2de>'
    """
    if not _TAG.fullmatch(tag) or tag in SPECIAL_TOKENS or _BYTE.fullmatch(tag):
        raise ValueError(f"tags must be words in angle brackets, such as <2de>, and no reserved tokens; got {tag!r}")
    return tag
