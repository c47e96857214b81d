"""The quickstart: fit, test, a few translations and the attention picture, one after the other."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from lit_transformer.command_options import CommandParser, command_parser, positive
from lit_transformer.errors import InputError
from lit_transformer.yaml_files import config_file

SENTENCES = ("I love cats", "Did she read two books at the library yesterday?", "We will not eat the small apple")


def quickstart_parser() -> CommandParser:
    """The options of ``quickstart``."""
    parser = command_parser(
        "quickstart",
        "Trains a small English-Korean Transformer on the embedded teaching corpus, scores it on sentences\n"
        "that it has never seen, translates a few, and draws what its heads attend to.",
        "About three minutes on two CPU cores. Every step is an ordinary command, printed before it runs.",
    )
    parser.add_argument(
        "--output",
        default="runs/quickstart",
        metavar="FOLDER",
        help="folder of the run, whose last quickstart is replaced (default: runs/quickstart)",
    )
    parser.add_argument("--max_steps", type=positive, help="fewer steps, for a quick look at the machinery")
    return parser


def _command(*arguments: str) -> None:
    """Prints a command as the user would type it, and runs it."""
    from lit_transformer import attention_command, training_cli, translate_command

    shown = " ".join(f"'{part}'" if " " in part else part for part in arguments)
    sys.stdout.write(f"\n$ lit-transformer {shown}\n")
    sys.stdout.flush()
    home = {"translate": translate_command, "attention": attention_command}.get(arguments[0], training_cli)
    home.run(list(arguments))


def _is_quickstart(root: Path) -> bool:
    """Whether the run in a folder was trained on the teaching corpus, as an earlier quickstart was."""
    try:
        return "lit_transformer.TeachingCorpus" in (root / "config.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def run(arguments: list[str]) -> None:
    """Runs the quickstart."""
    options = quickstart_parser().parse_args(arguments[1:])
    from lit_transformer.heatmaps import blank_figure  # which takes its time, and the help page does without

    root, start = Path(options.output), time.perf_counter()
    try:
        blank_figure()  # of its last step, so that three minutes are not lost where the extra is missing
    except ModuleNotFoundError as error:
        raise InputError(str(error)) from None
    if any((root / "checkpoints").glob("*.ckpt")) and not _is_quickstart(root):
        raise InputError(f"{root} holds a run that is no quickstart, which would be lost: name another --output")
    fit = ["fit", "--config", str(config_file("quickstart.yaml")), "--trainer.default_root_dir", str(root)]
    fit += ["--trainer.devices", "1"]  # more would each start this program again
    if options.max_steps:
        for key in ("trainer.max_steps", "trainer.val_check_interval", "checkpoint.every_n_train_steps"):
            fit += [f"--{key}", str(options.max_steps)]
        fit += ["--trainer.log_every_n_steps", str(min(20, options.max_steps))]
        fit += ["--averaging.num_checkpoints", "1"]
    _command(*fit, "--overwrite", "true")
    _command("test", "--config", str(root / "config.yaml"))
    _command("translate", str(root), *SENTENCES)
    _command("attention", str(root), SENTENCES[0], "--output", str(root / "attention"))
    logging.getLogger(__name__).info(
        "\nDone in %.0f seconds. Open %s in a browser, and try a sentence of your own:\n"
        "  lit-transformer translate %s 'My mother bought three apples'\n"
        "Next: your own text, see configs/data/own_files.yaml.",
        time.perf_counter() - start,
        root / "attention.html",
        root,
    )
