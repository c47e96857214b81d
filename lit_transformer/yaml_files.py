"""The configuration files that a command line of training names: what in them no parser would explain."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lit_transformer.errors import InputError

logger = logging.getLogger(__name__)

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")  # what may stand beside class_path


def config_file(name: str) -> Path:
    """A configuration that comes with the package, from the installed package or from the source tree.

    Raises:
        InputError: If there is none of that name.
    """
    here = Path(__file__).parent
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"the configuration {name} is not installed; reinstall lit-transformer")


def with_own_configurations(arguments: Sequence[str]) -> list[str]:
    """The command line, in which a ``--config configs/...`` that is not here is that of the installed package."""
    found = list(arguments)
    for place, name in _named(arguments):
        path = Path(name)
        if path.parts[:1] != ("configs",) or path.exists():
            continue
        with suppress(InputError):  # if the package has none either, the parser says that there is no such file
            own = config_file(str(path.relative_to("configs")))
            logger.info("there is no %s here: taking the one that comes with lit-transformer, %s", path, own)
            found[place] = found[place].removesuffix(name) + str(own)
    return found


def configuration_files(arguments: Sequence[str]) -> Iterator[Path]:
    """The files that ``--config`` names on a command line, as far as they are there."""
    for _, name in _named(arguments):
        with suppress(OSError):  # of a configuration written out in place of a file's name, which is too long for one
            if Path(name).is_file():
                yield Path(name)


def _named(arguments: Sequence[str]) -> Iterator[tuple[int, str]]:
    """What ``--config`` names on a command line, each with the place that it ends."""
    for place, option in enumerate(arguments):
        name, equals, attached = option.partition("=")
        if name in ("-c", "--config"):
            yield from [(place, attached)] if equals else enumerate(arguments[place + 1 : place + 2], place + 1)


def check_yaml(arguments: Sequence[str]) -> None:
    """Names the file and the place where one is not YAML, has a key twice, or arguments of a class in a wrong place.

    The parser would only quote the problem.

    Raises:
        InputError: If a file that ``--config`` names is not YAML, has a key twice in one block, or has arguments of a
            class beside its class_path.
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
        _check_classes(content, path)


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


def _check_classes(content: Any, path: Path, place: str = "") -> None:
    """Refuses arguments of a class beside its class_path, at this place of a file and below it."""
    if isinstance(content, list):
        for number, item in enumerate(content):
            _check_classes(item, path, f"{place}[{number}]")
    if not isinstance(content, dict):
        return
    stray = [str(key) for key in content if key not in (*_OF_A_CLASS, "__path__")]
    beside = [name for name in _OF_A_CLASS if isinstance(content.get(name), (str, dict))]
    if stray and beside:
        raise InputError(
            f"{path} has {', '.join(stray)} beside the {beside[0]} of {place or 'the whole file'}: arguments of a "
            f"class stand under init_args, as in init_args: {{{stray[0]}: ...}}"
        )
    for key, item in content.items():
        _check_classes(item, path, f"{place}.{key}" if place else str(key))
