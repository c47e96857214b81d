"""The commands ``export`` and ``import``."""

from __future__ import annotations

import sys
from pathlib import Path

from lit_transformer.commands import CHECKPOINT_HELP, CommandParser, command_parser
from lit_transformer.interfaces import InputError

FORMATS = {
    "safetensors": "weights, configuration and tokenizer, for this package",
    "huggingface": "a Marian (pre-norm: Pegasus) model and tokenizer for transformers",
    "ctranslate2": "for the engine CTranslate2 (needs the extra ctranslate2)",
}


def export_parser() -> CommandParser:
    """The options of ``export``."""
    formats = "\n".join(f"  {name:<13}{summary}" for name, summary in FORMATS.items())
    parser = command_parser(
        "export",
        "Writes a trained model into a new folder, for use without its run or with other toolkits.",
        f"formats:\n{formats}\n\nexamples:\n"
        "  lit-transformer export runs/tiny exported\n"
        "  lit-transformer export averaged.ckpt marian --format huggingface",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("folder", help="the folder to write; it must be new, or empty")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="default: safetensors")
    return parser


def import_parser() -> CommandParser:
    """The options of ``import``."""
    parser = command_parser(
        "import",
        "Reads a Hugging Face Marian or Pegasus folder and writes one that the other commands take as a checkpoint.",
        "The tokenizer must be one that export --format huggingface wrote; the weights may have been trained on.\n\n"
        "examples:\n"
        "  lit-transformer import marian back\n"
        "  lit-transformer translate back 'I love cats'",
    )
    parser.add_argument("folder", help="the folder that transformers wrote, or export --format huggingface")
    parser.add_argument("output", help="the folder to write; it must be new, or empty")
    return parser


def export(arguments: list[str]) -> None:
    """Runs ``lit-transformer export``."""
    options = export_parser().parse_args(arguments)
    folder = _new_folder(options.folder)
    from lit_transformer.exchange import export_ctranslate2, export_huggingface
    from lit_transformer.translator import Translator

    translator = Translator.from_pretrained(options.checkpoint)
    write = {"huggingface": export_huggingface, "ctranslate2": export_ctranslate2}.get(options.format, Translator.save)
    write(translator, folder)
    _list(folder)


def import_(arguments: list[str]) -> None:
    """Runs ``lit-transformer import``."""
    options = import_parser().parse_args(arguments)
    folder = _new_folder(options.output)
    from lit_transformer.exchange import import_huggingface

    import_huggingface(options.folder).save(folder)
    _list(folder)


def _new_folder(name: str) -> Path:
    """The folder to write to, if nothing can be overwritten there."""
    folder = Path(name)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} exists already and is not an empty folder; name a new one")
    return folder


def _list(folder: Path) -> None:
    sys.stdout.writelines(f"{path}\n" for path in sorted(folder.iterdir()))


def run(arguments: list[str]) -> None:
    """Runs the command that ``arguments`` begins with."""
    (export if arguments[0] == "export" else import_)(arguments[1:])
