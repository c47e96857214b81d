"""The parser of the training commands: help pages to learn from, and messages that say what to mend."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from argparse import Action, HelpFormatter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch.cli import LightningArgumentParser

from lit_transformer.cli import did_you_mean, fail
from lit_transformer.data import ParallelCorpus, SubwordTokenizer, TranslationDataModule
from lit_transformer.decoding import BeamSearch
from lit_transformer.interfaces import InputError
from lit_transformer.module import LitTransformer
from lit_transformer.nn import Transformer

CORPORA = ("data.train", "data.val", "data.test", "data.predict")
PLUGS: dict[str, type] = {  # what stands behind the keys that take a class, and so are not options of the parser
    "model": LitTransformer,
    "model.network": Transformer,
    "model.optimizer": torch.optim.Adam,
    "model.search": BeamSearch,
    "data": TranslationDataModule,
    **dict.fromkeys(CORPORA, ParallelCorpus),
    "data.tokenizer": SubwordTokenizer,
}
HELP_SECTIONS: dict[str, tuple[str, set[str]]] = {  # title, and arguments that have a section or a link of their own
    "model": ("the model (another class: --model CLASS_PATH)", {"network"}),
    "model.network": ("its network (another class: --model.network CLASS_PATH)", {"vocab_size", "src_vocab_size"}),
    "data": ("the text (another class: --data CLASS_PATH)", {"seed", "train", "val", "test", "predict", "tokenizer"}),
    "data.train": ("a corpus: train, val, test or predict; in YAML also a list of them", set()),
    "data.tokenizer": ("another recipe for subwords (first --data.tokenizer lit_transformer.SubwordTokenizer)", set()),
}
EXAMPLES = {
    "fit": (
        "lit-transformer fit --config configs/tiny.yaml --config configs/data/own_files.yaml",
        "lit-transformer fit --config configs/tiny.yaml --data.train.path data/train --trainer.max_steps 5000",
        "lit-transformer fit --config runs/tiny/config.yaml --ckpt_path last",
    ),
    "validate": ("lit-transformer validate --config runs/tiny/config.yaml",),
    "test": (
        "lit-transformer test --config runs/tiny/config.yaml",
        "lit-transformer test --config runs/tiny/config.yaml --averaging.num_checkpoints 1 --bleu.output_path out.txt",
        "lit-transformer test --config configs/data/own_files.yaml --ckpt_path imported --bleu.output_path out.txt",
    ),
    "predict": (
        "lit-transformer predict --config runs/tiny/config.yaml --data.predict.path data/news --data.predict.tgt null",
    ),
}
GROUPS = {  # further groups of options, in the order of the help page, and their titles
    "warmup": "the schedule of the learning rate (section 5.3 of the paper)",
    "bleu": "translation and scores in validation and test; {run} is the folder of the run",
    "averaging": "the mean of the last checkpoints, in validate, test and predict (section 6.1 of the paper)",
    "writer": "the file that predict writes; {run} is the folder of the run",
    "checkpoint": "Lightning's ModelCheckpoint, which writes checkpoints; the last step always gets one",
    "trainer": "Lightning's Trainer, which decides how long and on what hardware",
}
CKPT_PATH_HELP = "Checkpoint: a .ckpt file, a folder, whose newest is taken, or last or best for that of the run"
MODEL_HELP = f"{CKPT_PATH_HELP}; also an exported or imported folder, or a model of the Hub"
_CLASS = re.compile(r"<class '([\w.]+)'>|typing\.(\w+\[.*?\])")


class HelpfulParser(LightningArgumentParser):
    """The parser of LightningCLI, which explains our keys and names the nearest right one when one is misspelt.

    Args:
        kwargs: Arguments of LightningCLI's own parser. Options cannot be abbreviated.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """Parses, and reads ``null`` for an argument of a nested class, which jsonargparse hands on as ``None``."""
        if isinstance(args, list):
            args = [re.sub("=None$", "=null", one) if isinstance(one, str) else one for one in args]
        return super().parse_args(args, *others, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message with a suggestion and exits with status 2."""
        text = plain_message(message)
        hint = did_you_mean(text, known_names(self)) or _near_class(text)
        fail(f"{text.rstrip('.')}.{hint}")
        sys.exit(2)

    def format_help(self, *formatter: HelpFormatter | None) -> str:  # without one in older versions
        """The help page: first our own keys, then those of Lightning, one sentence each."""
        command = self.prog.split()[-1]
        if command not in EXAMPLES or "trainer" not in self._named_groups:
            return _without_class_lists(super().format_help(*formatter))
        self._shorten(CKPT_PATH_HELP if command == "fit" else MODEL_HELP)
        self._arrange()
        _, _, page = super().format_help(*formatter).partition("\n\noptions:\n")
        first, title, rest = page.partition(f"\n\n{GROUPS['warmup']}:\n")
        parts = (
            f"usage: lit-transformer {command} --config FILE [--config FILE ...] [--KEY VALUE ...]",
            f"{_SUMMARIES[command]}\n\nEvery KEY can stand in a YAML file too, where its dots are levels; "
            "a later file\nor option wins over an earlier one.",
            "\n  ".join(("examples:", *EXAMPLES[command])),
            f"options:\n{first}",
            f"{_plug_help()}{title}{rest}",
        )
        return _without_class_lists("\n\n".join(parts))

    @property
    def _named_groups(self) -> dict[str, Any]:
        return self.groups or {}

    def _shorten(self, ckpt_path: str) -> None:
        """Keeps the first sentence of what Lightning says of its own arguments."""
        for action in self._actions:
            if action.dest == "ckpt_path":
                action.help = ckpt_path
            elif action.dest.split(".")[0] in ("trainer", "checkpoint", "weights_only") and action.help:
                action.help = re.split(r"(?<=[a-z`)])\.\s", f"{' '.join(str(action.help).split())} ")[0]

    def _arrange(self) -> None:
        """Puts the groups of options into the order in which they are of interest."""
        groups = {key: self._named_groups[key] for key in GROUPS}
        for key, group in groups.items():
            group.title = GROUPS[key]
        general, run = self._action_groups[1], self._action_groups[-1]
        run.title = "the checkpoint to start from"
        self._action_groups = [general, run, *groups.values()]

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        return []  # an abbreviation is a misspelling


_SUMMARIES = {
    "fit": "Trains a network on a corpus.",
    "validate": "Scores a checkpoint on the validation text.",
    "test": "Scores a checkpoint, or the mean of the last ones, on the test text.",
    "predict": "Translates a corpus into a file, on any number of devices.",
}


def known_names(parser: LightningArgumentParser) -> set[str]:
    """Every key that a configuration usually has, in full: options, and arguments of the classes behind them."""
    names = set(PLUGS)
    for action in parser._actions:
        choices: Any = action.choices
        if isinstance(choices, dict):
            names |= {action.dest for subparser in choices.values() for action in subparser._actions}
        else:
            names.add(action.dest)
    for key, plug in PLUGS.items():
        names |= {f"{key}.{name}" for name in list(inspect.signature(plug.__init__).parameters)[1:]}
    return names - {f"model.network.{name}" for name in HELP_SECTIONS["model.network"][1]}


def plain_message(message: str) -> str:
    """What a parser says, without its insides: no lists of types, no dump of objects.

    Example:
        >>> plain_message("Expected a <class 'int'>. Got value: many")
        'expected int, got many'
    """
    text = " ".join(message.split())
    text = re.sub(r'Parser key "([^"]*)": ', r"\1: ", text)
    start = re.search(r"Does not validate against any of the Union subtypes.*?Errors:|(?<=: )(?=- )", text)
    if start:
        text = text[: start.start()] + _best(text[start.end() :])
    text = re.sub(r"Type typing\.Callable\[.*\] expects a function or a callable class: ", "", text)
    text = re.sub(r"\.? Got value: Namespace\(.*", "", text)
    text = _CLASS.sub(lambda found: found.group(1) or found.group(2), text)
    return re.sub(r"Expected an? (.*?)\.? Got value: ", r"expected \1, got ", text)


def configuration_files(arguments: Sequence[str]) -> Iterator[Path]:
    """The files that ``--config`` names on a command line, as far as they are there."""
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, attached = option.partition("=")
        path = Path(attached or value)
        if name in ("-c", "--config") and path.is_file():
            yield path


def check_yaml(arguments: Sequence[str]) -> None:
    """Names the configuration file and the line if one is not YAML; the parser would only quote the problem.

    Raises:
        InputError: If a file that ``--config`` names is not YAML, or has a key twice in one block.
    """
    for path in configuration_files(arguments):
        try:
            text = path.read_text(encoding="utf-8")
            content = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise InputError(f"{path}{line} is not YAML: {error.problem}; check indentation and brackets") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a YAML file in UTF-8") from error
        if not isinstance(content, dict):
            raise InputError(f"{path} holds no configuration: expected keys such as model: and data: at its left edge")
        _check_keys(yaml.compose(text, yaml.SafeLoader), path)


def _check_keys(node: Any, path: Path, above: str = "") -> None:
    """Refuses a key that comes twice in one block, of which YAML would silently drop the first."""
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _check_keys(part, path, above)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in lines and key.value != "<<":  # which takes other blocks in
            raise InputError(
                f"{path} has the key {above}{key.value} twice, in lines {lines[key.value]} and {line}: the second "
                "would replace the first, so make them one"
            )
        lines[key.value] = line
        _check_keys(value, path, f"{above}{key.value}.")


def _best(reasons: str) -> str:
    """The one of several reasons, each behind a dash, that tells most."""
    given = re.search(r"Given value: (\S+)$", reasons)
    found = [one.partition(" Given value")[0] for one in re.split(r"(?:^|\s)- ", reasons)]
    for one in found:
        if one and not one.startswith(("Expected", "Does not validate", "Not a valid subclass", "a ")):
            return re.sub(r"^Problem with given class_path '[^']*': ", "", one)
    bare = re.search(r"Expected a dot import path string: (\S+)", reasons)
    if bare:
        return f"expected a class by its import path, such as lit_transformer.Transformer, got {bare.group(1)}"
    types = [re.sub(r"^Expected an? ", "", one) for one in found if one.startswith("Expected") and "None" not in one]
    return f"Expected a {' or '.join(types)}" + (f". Got value: {given.group(1)}" if given else "")


def _near_class(text: str) -> str:
    """A suggestion for a class that its module does not have."""
    missing = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text)
    if not missing or missing.group(1) not in sys.modules:
        return ""
    module, name = missing.groups()
    close = difflib.get_close_matches(name, dir(sys.modules[module]), n=1)
    return f" Did you mean '{module}.{close[0]}'?" if close else ""


def _plug_help() -> str:
    """The help of the arguments of our own classes, section by section."""
    pages = []
    for key, (title, skip) in HELP_SECTIONS.items():
        parser = HelpfulParser(usage="", add_help=False)
        parser.add_class_arguments(PLUGS[key], key, skip=skip)
        group = parser._named_groups[key]
        group.title = title
        group._group_actions = [action for action in group._group_actions if _is_shown(action, key)]
        pages.append(parser.format_help().partition(f"{title}:")[2])
    return "\n\n".join(
        f"{title}:{page.rstrip()}" for (title, _), page in zip(HELP_SECTIONS.values(), pages, strict=True)
    )


def _is_shown(action: Action, key: str) -> bool:
    return action.dest != key and not action.dest.endswith(".help")


def _without_class_lists(text: str) -> str:
    """A page without requirements that are met, and without the lists of all classes that a key could name."""
    text = re.sub(r"\(required,\s+type:", "(type:", text)  # the defaults are in place
    return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", text)
