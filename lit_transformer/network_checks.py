"""What a network and the data must agree on before training, and what its checkpoints would lack."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from lit_transformer.arguments import is_plain
from lit_transformer.class_paths import is_importable
from lit_transformer.errors import InputError
from lit_transformer.interfaces import TranslationNetwork


def too_short(network: TranslationNetwork, datamodule: object) -> tuple[int, int] | None:
    """The longest sentence of a network and that of the data, in tokens, if the network's is the shorter one."""
    room = getattr(network, "max_length", None)
    longest = getattr(getattr(datamodule, "limits", None), "max_length", None)
    return (room, longest) if isinstance(longest, int) and isinstance(room, int) and room < longest else None


def check_room(network: TranslationNetwork, datamodule: object) -> None:
    """Refuses a network that cannot represent the longest sentence of the data, where both say how long.

    Raises:
        InputError: If it cannot.
    """
    if lengths := too_short(network, datamodule):
        raise InputError(
            f"model.network.max_length={lengths[0]} has no room for sentences of data.max_length={lengths[1]} tokens; "
            "make the one larger or the other smaller"
        )


def check_agreement(network: TranslationNetwork, datamodule: object) -> None:
    """Refuses data with a tokenizer of another size or other sides than the network, or with longer sentences.

    Raises:
        InputError: If they differ, where both say theirs.
    """
    tokenizer = getattr(datamodule, "tokenizer", None)
    check_room(network, datamodule)
    for name in ("vocab_size", "src_vocab_size"):
        ours, theirs = (getattr(one, name, None) for one in (network, tokenizer))
        if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs:
            raise InputError(
                f"the network has {name}={ours}, but the tokenizer of the data {theirs}: make them agree (a data "
                f"module of your own hands {name} on if its constructor has an argument of this name)"
            )
    is_tied = getattr(network, "tie", None) == "all"
    if is_tied and not getattr(tokenizer, "is_shared", True):
        raise InputError(
            "the network has tie=all, one embedding for both sides, but source and target have vocabularies of "
            "their own: set model.network.tie to output or none, or leave data.src_vocab_size out"
        )


def warn_of_checkpoints(network: TranslationNetwork) -> None:
    """Warns where checkpoints will not say how to build the network, so that nothing but this program can use them."""
    for name, value in network.spec.get("init_args", {}).items():
        if not is_plain(value):
            rank_zero_warn(
                f"argument {name} of {type(network).__name__} is no plain data ({type(value).__name__}), so "
                "checkpoints cannot say how to build the network, and translate, export and serve cannot read "
                "them; take numbers, strings, booleans, lists and dicts"
            )
    class_path = str(network.spec.get("class_path", ""))
    if not is_importable(class_path):
        rank_zero_warn(
            f"the network's class {class_path} was defined in a script, where nobody else can import it, so "
            "translate, export and serve cannot read its checkpoints; move it into a module of its own"
        )


def warn_of_compilation(network: TranslationNetwork) -> None:
    """Warns where the network is compiled as a whole, so that its loss keeps the logits of all tokens."""
    is_wrapped = hasattr(network, "_orig_mod")  # by torch.compile(network), not network.compile()
    if not is_wrapped and network._compiled_call_impl is None:
        return
    names = ", and its weights have other names in checkpoints, so that a resume needs the wrapper too" * is_wrapped
    rank_zero_warn(
        f"the network is compiled as a whole, so training keeps the logits of all tokens and needs more memory{names}; "
        "take LitTransformer(network, compile_layers=True) instead, which compiles its layers only"
    )
