"""The command attention: what every head looks at in one sentence, as pictures and as a page to explore."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from lit_transformer.command_options import (
    CHECKPOINT_HELP,
    command_parser,
    loading_a_model,
    positive,
    sparing_memory,
    writing,
)
from lit_transformer.errors import InputError
from lit_transformer.lines import given_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_transformer.attention_view import AttentionView

EXTRAS = ("positions", "masks", "warmup")
_PADDING = 3  # tokens of padding in the picture of the masks


def attention_parser() -> argparse.ArgumentParser:
    """The options of ``attention``."""
    parser = command_parser(
        "attention",
        "Draws what every head of the three attentions looks at, for a sentence and its translation.",
        "Writes NAME.png pictures and NAME.html, a page to explore that works offline. Without a translation of yours\n"
        "the page also shows the best candidates of the search, and what the heads look at in each.\n\nexamples:\n"
        "  lit-transformer attention runs/quickstart 'I love cats'\n"
        "  lit-transformer attention runs/quickstart 'I love cats' '나는 고양이를 좋아해' --output cats\n"
        "  lit-transformer attention runs/quickstart 'I love cats' --also positions masks warmup\n"
        "  lit-transformer attention runs/quickstart 'I love cats' --output cats.pdf",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("source", help="the sentence")
    parser.add_argument("target", nargs="?", help="its translation (default: the model's own)")
    parser.add_argument(
        "--output",
        default="attention",
        metavar="NAME",
        help="files to write (default: attention); NAME.html is the page alone, NAME.png the pictures alone, "
        "NAME.pdf or NAME.svg the pictures for print",
    )
    parser.add_argument("--n_best", type=positive, default=4, help="candidates on the page (default: 4)")
    parser.add_argument(
        "--also",
        nargs="+",
        choices=EXTRAS,
        default=[],
        metavar="PICTURE",
        help="further pictures: positions (what is added to the embeddings), masks (what may be attended to) and "
        "warmup (the paper's learning rate for this d_model)",
    )
    parser.add_argument("--warmup_steps", type=positive, default=4000, help="steps to the peak (default: 4000)")
    return parser


def attention(options: argparse.Namespace) -> None:
    """Draws the attention of every head for one sentence pair."""
    from lit_transformer.decoding import BeamSearch
    from lit_transformer.plotting import PIXELS_PER_INCH, draw_attention, split_ending
    from lit_transformer.translator import Translator

    options.source, options.target = given_lines([options.source, options.target or ""])
    stem, _, picture = split_ending(options.output)
    search = BeamSearch(beam_size=max(4, options.n_best), n_best=options.n_best)
    with loading_a_model():
        translator = Translator.from_pretrained(options.checkpoint, search=search)
    with sparing_memory("use a smaller --n_best, or a shorter sentence"):
        view = translator.attention(options.source, options.target or None)
    beams = [(beam.text, beam.score) for beam in view.beams]
    try:
        figures = {name: _extra(name, translator.network, view, options.warmup_steps) for name in options.also}
        with writing(options.output):
            paths = draw_attention(
                *(view.maps, view.src_tokens, view.tgt_tokens, options.output),
                title=view.title,
                beams=beams,
                others=view.others,
            )
            for name, figure in figures.items():
                paths.append(stem.with_name(f"{stem.name}-{name}{picture}"))
                figure.savefig(paths[-1], dpi=PIXELS_PER_INCH)
    except ModuleNotFoundError as error:  # the extra is missing, which the message names
        raise InputError(str(error)) from None
    sys.stdout.writelines(f"{path}\n" for path in paths)


def _extra(name: str, network: Any, view: AttentionView, warmup_steps: int) -> Figure:
    """One of the pictures that belong to the network rather than to the sentence."""
    import torch

    from lit_transformer import plotting
    from lit_transformer.vocabulary import PAD_ID, SPECIAL_TOKENS

    if name == "masks":
        ids = torch.tensor([[1] * len(view.src_tokens) + [PAD_ID] * _PADDING])
        src_tokens, read = [*view.src_tokens, *[SPECIAL_TOKENS[PAD_ID]] * _PADDING], view.tgt_tokens[:-1]
        return plotting.plot_masks(ids, len(read), src_tokens=src_tokens, tgt_tokens=read)
    d_model = getattr(network, "d_model", None)
    if d_model is None:
        raise InputError(f"{type(network).__name__} has no d_model, so its {name} cannot be drawn")
    if name == "warmup":
        return plotting.plot_warmup(d_model, warmup_steps, num_steps=5 * warmup_steps)
    length = min(max(64, len(view.src_tokens), len(view.tgt_tokens)), network.max_length or 1024)
    return plotting.plot_positions(d_model, length, positions=getattr(network, "src_positions", None))


def run(arguments: list[str]) -> None:
    """Runs the command."""
    attention(attention_parser().parse_intermixed_args(arguments[1:]))
