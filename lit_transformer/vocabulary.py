"""The four token ids that every part of the package agrees on."""

PAD_ID = 0
UNK_ID = 1
BOS_ID = 2
EOS_ID = 3

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")  # spelled in the order of their ids
