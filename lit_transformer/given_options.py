"""What a command line of training says that parses well and still is not what its writer meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lit_transformer.errors import InputError
from lit_transformer.yaml_files import configuration_files

_PARTS = ("train", "val", "test", "predict")
_SIZES = ("vocab_size", "src_vocab_size")


def check_options(config: Any, subcommand: str, given: Sequence[str]) -> None:
    """Refuses options that would change something else than they seem to.

    Args:
        config: The parsed configuration of the subcommand.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        given: The command line.

    Raises:
        InputError: If one part of several corpora is to be changed, the folder of the run is not where its
            ``config.yaml`` lies, a number is out of its range, or the network is given a size that only the data sets.
    """
    _check_numbers(config)
    if subcommand == "fit":
        _check_vocabulary(config, given)
    names = [option.partition("=")[0].removeprefix("--") for option in given if option.startswith("--")]
    _check_corpora(config, names)
    if subcommand != "fit" and config.get("init_from") is not None:
        if "init_from" in names:
            raise InputError(
                f"--init_from is for fit: let {subcommand} take the model by --ckpt_path {config.init_from}"
            )
        config.init_from = None  # what the run began with
    if subcommand != "fit" or config.get("ckpt_path") in ("last", "best"):
        _check_folder(config, names, configuration_files(given))


def _check_numbers(config: Any) -> None:
    """What Lightning would only find out by a division or in the random generators."""
    for name in ("accumulate_grad_batches", "val_check_interval"):
        number = config.trainer.get(name)
        if isinstance(number, (int, float)) and number <= 0:
            raise InputError(f"trainer.{name} must be above 0, got {number}")
    seed = config.get("seed_everything")
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise InputError(f"seed_everything must be at least 0 and below 2^32, got {seed}")


def _check_vocabulary(config: Any, given: Sequence[str]) -> None:
    """The network takes its vocabulary from the data, whatever it is given, where the data has one."""
    network = config.model.init_args.get("network")
    taken = (network.get("init_args") if network else None) or {}
    for name, size in _sizes_of_network(given).items():
        if size not in (None, "null") and name in taken and str(taken[name]) != str(size):
            raise InputError(
                f"model.network.{name}={size} would have no effect, since the network takes the size of the tokenizer, "
                f"data.{name}={taken[name]}: set data.{name} instead"
            )


def _sizes_of_network(given: Sequence[str]) -> dict[str, Any]:
    """The last vocabulary sizes that a command line or its configuration files give to the network, by their names."""
    keys = {
        f"--model.{outer}network.{inner}{name}": name
        for name in _SIZES
        for outer in ("", "init_args.")
        for inner in ("", "init_args.")
    }
    found: dict[str, Any] = {}
    for option, following in zip(given, [*given[1:], ""], strict=True):
        key, _, attached = option.partition("=")
        if key in keys:
            found[keys[key]] = attached or following
        for file in configuration_files([option, following]) if key in ("-c", "--config") else ():
            network = _network_in(file)
            found |= {name: network[name] for name in _SIZES if name in network}
    return found


def _network_in(file: Path) -> dict[str, Any]:
    """What a configuration file gives to the network, whose classes may be spelled out or not."""
    block: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    for key in ("model", "network"):
        block = block.get(key) if isinstance(block, dict) else None
        block = block.get("init_args", block) if isinstance(block, dict) else None
    return block if isinstance(block, dict) else {}


def _check_corpora(config: Any, names: Sequence[str]) -> None:
    """A part of a list of corpora has no place on the command line, where it would change the last one alone."""
    data = config.data.get("init_args") or {}
    for part in _PARTS:
        corpora = data.get(part)
        changed = [name for name in names if name.startswith((f"data.{part}.", f"data.init_args.{part}."))]
        if changed and isinstance(corpora, list) and len(corpora) > 1:
            raise InputError(
                f"--{changed[0]} would change the last one of {len(corpora)} corpora of data.{part} alone: write the "
                "list in a YAML file and give that by --config"
            )


def _check_folder(config: Any, names: Sequence[str], files: Iterable[Path]) -> None:
    """A run that was moved has a configuration that still names the old folder, where another run may be now."""
    if "trainer.default_root_dir" in names or config.get("ckpt_path") not in (None, "last", "best"):
        return
    for file in files:
        if file.name != "config.yaml" or not (file.parent / "checkpoints").is_dir():
            continue
        stored = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("trainer") or {}
        root = str(config.trainer.default_root_dir)
        if str(stored.get("default_root_dir")) == root and Path(root).resolve() != file.parent.resolve():
            raise InputError(
                f"{file} says that its run is in {root}, but it lies in {file.parent}: if the run was moved, add "
                f"--trainer.default_root_dir {file.parent}"
            )
