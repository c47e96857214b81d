"""The weights that a training command begins with, and the network that its configuration has to name for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lit_transformer.checkpoints import CheckpointError, newest_checkpoint, read_checkpoint
from lit_transformer.data import SubwordTokenizer
from lit_transformer.interfaces import TranslationNetwork
from lit_transformer.model_files import TOKENIZER_FILE, WEIGHTS_FILE, local_folder
from lit_transformer.translator import Translator

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")  # which weights do not depend on


class Beginning(NamedTuple):
    """A model that is there before anything is trained.

    Args:
        path: Where it was read: a checkpoint, a folder, or the Hub.
        network: With its weights.
        tokenizer: Its subwords.
    """

    path: Path
    network: TranslationNetwork
    tokenizer: SubwordTokenizer


def take_weights(config: Any, subcommand: str, root: Path) -> Beginning | None:
    """Finds the weights that a subcommand is to begin with, and makes its configuration fit them.

    ``ckpt_path`` becomes the path of the checkpoint that Lightning is to load, or None where there is none.

    Args:
        config: The subcommand's configuration, which is changed.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        root: The folder of the run.

    Returns:
        The model whose weights are to be put in before the trainer starts, if Lightning does not load them.

    Raises:
        CheckpointError: If there are no such weights, or the configuration says another network.
    """
    given, init_from = config.get("ckpt_path"), config.get("init_from")
    if subcommand == "fit":
        if given is not None:
            _resume(config, _checkpoint(given, root))
            return None
        return None if init_from is None else _begin(config, init_from, root)
    if given in (None, "last"):
        _load(config, newest_checkpoint(root))
        return None
    path = local_folder(given)
    if (path / WEIGHTS_FILE).is_file():
        return _score(config, path)
    _load(config, newest_checkpoint(path) if path.is_dir() else path)
    return None


def _begin(config: Any, init_from: str, root: Path) -> Beginning:
    """Training takes the network but for dropout, and keeps a tokenizer of its own."""
    model = Translator.from_pretrained(init_from)
    network, tokenizer = model.network, model.tokenizer
    own = config.model.init_args.network.get("init_args") or {}
    kept = {name: own[name] for name in DROPOUTS if name in own and name in network.spec["init_args"]}
    spec = {**network.spec, "init_args": {**network.spec["init_args"], **kept}}
    _take(config, spec, tokenizer, root / TOKENIZER_FILE)
    return Beginning(Path(init_from), network, tokenizer)


def _score(config: Any, folder: Path) -> Beginning:
    """An exported or imported folder is scored as it is."""
    model = Translator.from_pretrained(folder)
    _take(config, model.network.spec, model.tokenizer, folder / TOKENIZER_FILE)
    config.ckpt_path, config.averaging.num_checkpoints = None, 1
    return Beginning(folder, model.network, model.tokenizer)


def _take(config: Any, spec: dict[str, Any], tokenizer: SubwordTokenizer, tokenizer_path: Path) -> None:
    _name_network(config, spec)
    data = config.data.init_args
    data.tokenizer, data.tokenizer_path = None, str(tokenizer_path)
    data.vocab_size = tokenizer.vocab_size
    data.src_vocab_size = None if tokenizer.joint else tokenizer.src_vocab_size


def _name_network(config: Any, spec: dict[str, Any]) -> None:
    network = config.model.init_args.network
    network.class_path, network.init_args = spec["class_path"], type(config)(**spec["init_args"])


def _checkpoint(given: str, root: Path) -> Path:
    """The file that ``--ckpt_path`` means."""
    path = root if given == "last" else Path(given)
    if (path / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{path} is an exported folder, from which training cannot go on: begin with it by --init_from {path}"
        )
    return newest_checkpoint(path) if path.is_dir() or given == "last" else path


def _load(config: Any, path: Path) -> None:
    """Weights fit only the network that they were trained in, so scoring and predicting build that one."""
    _name_network(config, _stored_network(read_checkpoint(path), path))
    config.ckpt_path = str(path)


def _resume(config: Any, path: Path) -> None:
    """Resumed training keeps to the configuration and refuses a checkpoint of another network."""
    content = read_checkpoint(path)
    stored = _stored_network(content, path)["init_args"]
    if "optimizer_states" not in content:
        raise CheckpointError(f"{path} holds no optimizer, so training cannot go on from it: take one that fit wrote")
    given = config.model.init_args.network.init_args.as_dict()
    for name in given.keys() & stored.keys():
        if given[name] != stored[name]:
            raise CheckpointError(
                f"{path} holds a network with {name}={stored[name]}, but the configuration says {given[name]}; "
                "continue with the configuration that the run was started with (config.yaml in its folder)"
            )
    config.ckpt_path = str(path)


def _stored_network(content: dict[str, Any], path: Path) -> dict[str, Any]:
    network = content.get("hyper_parameters", {}).get("network")
    if not isinstance(network, dict):
        raise CheckpointError(f"{path} does not say how its network is built: it was not written by fit")
    return network
