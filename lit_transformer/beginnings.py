"""The weights that a training command begins with, and the network that its configuration has to name for them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

from lit_transformer.checkpoints import CheckpointError, newest_checkpoint, read_checkpoint
from lit_transformer.class_paths import class_path_of, import_class
from lit_transformer.data import SubwordTokenizer
from lit_transformer.interfaces import InputError, TranslationNetwork
from lit_transformer.model_files import TOKENIZER_FILE, folder_of_run, holds_model, local_folder
from lit_transformer.translator import Translator

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")  # which weights do not depend on


class Beginning(NamedTuple):
    """A model that is there before anything is trained.

    Args:
        name: What the user gave: a checkpoint, a folder, or a name of the Hub.
        network: With its weights.
        tokenizer: Its subwords.
    """

    name: str
    network: TranslationNetwork
    tokenizer: SubwordTokenizer


def take_weights(config: Any, subcommand: str, root: Path, kept_in: Path | None = None) -> Beginning | None:
    """Finds the weights that a subcommand is to begin with, and makes its configuration fit them.

    ``ckpt_path`` becomes the path of the checkpoint that Lightning is to load, or None where there is none.

    Args:
        config: The subcommand's configuration, which is changed.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        root: The folder of the run.
        kept_in: The folder in which training keeps its tokenizer, if not in that of the run.

    Returns:
        The model whose weights are to be put in before the trainer starts, if Lightning does not load them.

    Raises:
        CheckpointError: If there are no such weights, or the configuration says another network.
        InputError: If the configuration has no place for them.
    """
    given = config.get("ckpt_path")
    kept = _folder_of_checkpoints(config) or root
    if subcommand == "fit":
        if given is not None:  # then a run goes on, however it began
            _resume(config, _checkpoint(given, kept))
            return None
        init_from = config.get("init_from")
        return None if init_from is None else _begin(config, init_from, kept_in or root)
    if given not in (None, "last", "best") and holds_model(path := local_folder(given)):
        return _score(config, given, path)
    _load(config, _checkpoint(given or "last", kept))
    return None


def _folder_of_checkpoints(config: Any) -> Path | None:
    """Where the run keeps its checkpoints, if not in its own folder: by the first callback that writes them."""
    for callback, kind in _listed_callbacks(config):
        if issubclass(kind, ModelCheckpoint):  # in place of ours
            dirpath = (callback.get("init_args") or {}).get("dirpath")
            return Path(dirpath).expanduser() if dirpath else None
    return Path(config.checkpoint.dirpath).expanduser() if config.checkpoint.dirpath else None


def _listed_callbacks(config: Any) -> Iterator[tuple[Any, type]]:
    """What ``trainer.callbacks`` says of each callback, and its class."""
    listed = config.trainer.callbacks or []
    for callback in listed if isinstance(listed, list) else [listed]:
        yield callback, _class_of(callback)


def _class_of(parsed: Any) -> type:
    """The class of a part of a configuration; it has been parsed, so the class is there, perhaps in a script."""
    module, _, name = parsed["class_path"].rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _begin(config: Any, init_from: str, root: Path) -> Beginning:
    """Training takes the network but for dropout, and keeps a tokenizer of its own."""
    model = Translator.from_pretrained(init_from)
    own = config.model.init_args.get("network", {}).get("init_args") or {}
    arguments = model.network.spec["init_args"]
    kept = {name: own[name] for name in DROPOUTS if name in own and name in arguments}
    spec = {**model.network.spec, "init_args": {**arguments, **kept}}
    _take(config, spec, model.tokenizer, root / TOKENIZER_FILE, init_from)
    return Beginning(init_from, model.network, model.tokenizer)


def _score(config: Any, given: str, folder: Path) -> Beginning:
    """An exported or imported folder is scored as it is."""
    model = Translator.from_pretrained(folder)
    _take(config, model.network.spec, model.tokenizer, folder / TOKENIZER_FILE, given)
    config.ckpt_path = None
    return Beginning(given, model.network, model.tokenizer)


def _take(config: Any, spec: dict[str, Any], tokenizer: SubwordTokenizer, tokenizer_path: Path, given: str) -> None:
    """Lets the configuration say what a folder holds."""
    model, data = config.model.init_args, config.data.init_args
    if "network" not in model:
        raise InputError(f"{config.model.class_path} takes no network, so it cannot take that of {given}")
    _name_network(config, spec)
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "src_vocab_size": None if tokenizer.joint else tokenizer.src_vocab_size,
    }
    for name, value in {"tokenizer": None, "tokenizer_path": str(tokenizer_path), **sizes}.items():
        if name in data:
            data[name] = value
        elif value is not None:
            raise InputError(f"{config.data.class_path} takes no {name}, which has to come from {given}")


def _name_network(config: Any, spec: dict[str, Any]) -> None:
    model = config.model.init_args
    if "network" in model:  # else the module builds its own
        model.network.class_path, model.network.init_args = spec["class_path"], type(config)(**spec["init_args"])


def _checkpoint(given: str, kept: Path) -> Path:
    """The file that ``--ckpt_path`` means; ``kept`` is the folder of the run, or where else it keeps checkpoints."""
    if "://" in given:
        raise CheckpointError(f"{given} is an address: download the checkpoint first, and give the file")
    if given == "best":
        return _best(kept)
    path = kept if given == "last" else Path(given)
    if given != "last" and holds_model(path):
        raise CheckpointError(
            f"{path} is an exported folder, from which training cannot go on: begin with it by --init_from {path}"
        )
    return newest_checkpoint(path) if given == "last" or path.is_dir() else path


def _best(kept: Path) -> Path:
    """The checkpoint that the newest one remembers as the best, wherever the run's folder is now."""
    newest = newest_checkpoint(kept)
    for state in read_checkpoint(newest).get("callbacks", {}).values():
        name = Path(state.get("best_model_path") or "").name
        if name and state.get("monitor") not in (None, "step"):
            best = newest.with_name(name)
            if not best.exists():
                raise CheckpointError(f"the best checkpoint of {kept} was {best}, which is not there any more")
            return best
    raise CheckpointError(f"{kept} knows no best checkpoint: train with --checkpoint.monitor val/bleu, or give a file")


def _load(config: Any, path: Path) -> None:
    """Weights fit only the network that they were trained in, so scoring and predicting build that one."""
    spec = _stored_network(read_checkpoint(path), path)
    named = config.model.init_args.get("network")
    if not (named and named.class_path == spec["class_path"]):  # else the user has said that it may be imported
        import_class(spec["class_path"], TranslationNetwork, "network", folder_of_run(path))  # type: ignore[type-abstract]
    _name_network(config, spec)
    config.ckpt_path = str(path)


def _resume(config: Any, path: Path) -> None:
    """Resumed training keeps to the configuration and refuses a checkpoint of another network."""
    content = read_checkpoint(path)
    spec = _stored_network(content, path)
    if "optimizer_states" not in content:
        raise CheckpointError(f"{path} holds no optimizer, so training cannot go on from it: take one that fit wrote")
    network = config.model.init_args.get("network")
    if network and not _is_class(spec["class_path"], network, path):
        raise CheckpointError(
            f"{path} holds a network of the class {spec['class_path']}, but the configuration says "
            f"{network.class_path}; continue with the configuration that the run was started with (config.yaml in its "
            "folder)"
        )
    given, stored = network.init_args.as_dict() if network else {}, spec["init_args"]
    for name in given.keys() & stored.keys():
        if given[name] != stored[name]:
            raise CheckpointError(
                f"{path} holds a network with {name}={stored[name]}, but the configuration says {given[name]}; "
                "continue with the configuration that the run was started with (config.yaml in its folder)"
            )
    _check_average(config, content, path)
    _check_optimizer(config.model.init_args.get("optimizer"), content["hyper_parameters"].get("optimizer"), path)
    config.ckpt_path = str(path)


def _is_class(class_path: str, network: Any, path: Path) -> bool:
    """Whether the import path in a checkpoint leads to the class of the configuration, which may have moved since."""
    if class_path in (network.class_path, class_path_of(_class_of(network))):
        return True
    try:
        stored = import_class(class_path, TranslationNetwork, "network", folder_of_run(path))  # type: ignore[type-abstract]
    except InputError:
        return False
    return stored is _class_of(network)


def _check_average(config: Any, content: dict[str, Any], path: Path) -> None:
    """The weights of a checkpoint may be an average, which the state of its optimizer does not belong to."""
    if "current_model_state" in content and not any(
        issubclass(kind, WeightAveraging) for _, kind in _listed_callbacks(config)
    ):
        raise CheckpointError(
            f"{path} holds a moving average, and apart from it the weights in training, which only the callback that "
            "averages them goes on with: list it under trainer.callbacks again (lit_transformer.MovingAverage), or "
            f"begin anew with the average by --init_from {path}"
        )


def _check_optimizer(now: Any, stored: Any, path: Path) -> None:
    """The optimizer comes back with all its settings but the learning rate, so that others would have no effect."""
    if not (isinstance(stored, dict) and now and "class_path" in now and "class_path" in stored):
        return
    if now["class_path"] != stored["class_path"]:
        changed = [f"it was {stored['class_path']} and is {now['class_path']}"]
    else:
        given = dict(now.get("init_args") or {})
        kept = {name: value for name, value in stored.get("init_args", {}).items() if name in given and name != "lr"}
        changed = [
            f"{name} was {value} and is {given[name]}"
            for name, value in kept.items()
            if _plain(given[name]) != _plain(value)
        ]
    if changed:
        raise CheckpointError(
            f"{path} brings the state of its optimizer along, in which nothing but the learning rate can change: "
            f"{'; '.join(changed)}; begin anew with its weights by --init_from {path}"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _stored_network(content: dict[str, Any], path: Path) -> dict[str, Any]:
    network = content.get("hyper_parameters", {}).get("network")
    if not isinstance(network, dict):
        raise CheckpointError(f"{path} does not say how its network is built: it was not written by fit")
    return network
