"""The commands ``export``, ``import`` and ``push``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from lit_transformer.command_options import (
    CHECKPOINT_HELP,
    CommandParser,
    add_penalty_options,
    command_parser,
    new_folder,
    positive,
)
from lit_transformer.errors import InputError
from lit_transformer.json_files import read_json

logger = logging.getLogger(__name__)

FORMATS = {
    "safetensors": "weights, configuration and tokenizer, for this package",
    "huggingface": "a Marian (pre-norm: Pegasus) model and tokenizer for transformers",
    "ctranslate2": "for the engine CTranslate2 (needs the extra ctranslate2)",
    "onnx": "encoder and decoder step for ONNX runtimes (needs the extra onnx)",
    "torch": "encoder and decoder step for torch.export.load, as .pt2 files",
}
_OF_SEARCH = ("beam_size", "length_penalty", "penalty_kind")


def export_parser() -> CommandParser:
    """The options of ``export``."""
    formats = "\n".join(f"  {name:<13}{summary}" for name, summary in FORMATS.items())
    parser = command_parser(
        "export",
        "Writes a trained model into a new folder, for use without its run or with other toolkits.",
        f"formats:\n{formats}\n\n"
        "Marian and Pegasus have sinusoidal positions, heads of d_model / num_heads features and one vocabulary.\n"
        "Their generate divides scores by length ** alpha, as translate --penalty_kind power does, so some beams end\n"
        "differently. --beam_size, --length_penalty and --penalty_kind are what generate takes where it is not told.\n"
        "The config.json of onnx and torch names inputs, ids and axes; all lengths are dynamic.\n\n"
        "examples:\n"
        "  lit-transformer export runs/tiny exported\n"
        "  lit-transformer export averaged.ckpt marian --format huggingface --beam_size 5",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("folder", help="the folder to write; it must be new, or empty")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="default: safetensors")
    parser.add_argument("--beam_size", type=positive, default=4, help="hypotheses kept; 1 is greedy (default: 4)")
    add_penalty_options(parser)
    return parser


def import_parser() -> CommandParser:
    """The options of ``import``."""
    parser = command_parser(
        "import",
        "Reads a Hugging Face Marian or Pegasus folder and writes one that the other commands take as a checkpoint.",
        "The tokenizer must be one that export --format huggingface wrote, or two sentencepiece unigram models with\n"
        "one vocabulary, as OPUS-MT has them; the weights may have been trained on. What was imported from\n"
        "sentencepiece can be exported as safetensors only.\n\n"
        "examples:\n"
        "  lit-transformer import opus-mt-en-de imported\n"
        "  lit-transformer translate imported 'I love cats'\n"
        "  lit-transformer fit --config more.yaml --init_from imported",
    )
    parser.add_argument("folder", help="the folder that transformers wrote, or export --format huggingface")
    parser.add_argument("output", help="the folder to write; it must be new, or empty")
    return parser


def push_parser() -> CommandParser:
    """The options of ``push``."""
    parser = command_parser(
        "push",
        "Writes a model with a card to the Hub of Hugging Face, as safetensors; Translator.from_pretrained reads it.",
        "Log in first with hf auth login, or set HF_TOKEN. Scores are those that test wrote into the run's folder, if\n"
        "they are of the weights that are pushed: test averages checkpoints, so make that mean first and push it.\n\n"
        "examples:\n"
        "  lit-transformer push runs/tiny me/tiny-en-de --language en de --license apache-2.0\n"
        "  lit-transformer average runs/tiny --last 3 --output averaged.ckpt\n"
        "  lit-transformer push averaged.ckpt me/tiny-en-de --scores runs/tiny/test.scores.json\n"
        "  lit-transformer translate me/tiny-en-de 'I love cats'",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("name", help="owner/name of the repository, which is made if need be")
    parser.add_argument("--language", nargs="+", default=[], metavar="CODE", help="for the card, source first: en de")
    parser.add_argument("--license", help="for the card, such as apache-2.0")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help="for the card: what it was trained on")
    parser.add_argument("--scores", metavar="FILE", help="for the card (default: test.scores.json of the run, if any)")
    parser.add_argument("--private", action="store_true", help="make it private; nothing goes to one that is public")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to write to (default: main)")
    return parser


def push(arguments: list[str]) -> None:
    """Runs ``lit-transformer push``."""
    options = push_parser().parse_args(arguments)
    from lit_transformer.exchange import push_to_hub
    from lit_transformer.exchange.scored import why_not_of
    from lit_transformer.hub import check_name
    from lit_transformer.model_files import weights_of
    from lit_transformer.translator import Translator

    check_name(options.name)
    weights = weights_of(options.checkpoint)  # once, since a run may go on meanwhile
    translator = Translator.from_pretrained(weights)
    path = Path(options.scores or Path(options.checkpoint) / "test.scores.json")
    scores = _scores(path) if options.scores or path.is_file() else {}
    if scores and (reason := why_not_of(scores, weights, translator.network)):
        logger.warning("the card has no scores: those in %s %s", path, reason)
        scores = {}
    address = push_to_hub(
        translator,
        options.name,
        scores,
        tuple(options.language),
        options.license,
        tuple(options.dataset),
        options.private or None,
        options.revision,
    )
    sys.stdout.write(f"{address}\n")


def _scores(path: Path) -> dict[str, Any]:
    """What ``test`` left in a file."""
    try:
        content = read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is no file of scores: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("scores"), dict):
        raise InputError(f"{path} is no file of scores as test writes it")
    return content


def export(arguments: list[str]) -> None:
    """Runs ``lit-transformer export``."""
    parser = export_parser()
    options = parser.parse_args(arguments)
    search = {name: getattr(options, name) for name in _OF_SEARCH}
    for name, value in search.items():
        if options.format != "huggingface" and value != parser.get_default(name):
            raise InputError(f"--{name} is for --format huggingface: the format {options.format} keeps no search")
    folder = new_folder(options.folder)
    from lit_transformer import exchange
    from lit_transformer.decoding import BeamSearch
    from lit_transformer.translator import Translator

    translator = Translator.from_pretrained(options.checkpoint, search=BeamSearch(**search))
    if options.format == "safetensors":
        translator.save(folder)
    else:
        getattr(exchange, f"export_{options.format}")(translator, folder)
    _list(folder)


def import_(arguments: list[str]) -> None:
    """Runs ``lit-transformer import``."""
    options = import_parser().parse_args(arguments)
    folder = new_folder(options.output)
    from lit_transformer.exchange import import_huggingface

    import_huggingface(options.folder).save(folder)
    _list(folder)


def _list(folder: Path) -> None:
    sys.stdout.writelines(f"{path}\n" for path in sorted(folder.iterdir()))


def run(arguments: list[str]) -> None:
    """Runs the command that ``arguments`` begins with."""
    {"export": export, "import": import_, "push": push}[arguments[0]](arguments[1:])
