"""Models on disk and on the Hub: network and tokenizer out of a checkpoint or a folder, and into a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from lit_transformer.checkpoints import CheckpointError, UndrawnWeights, newest_checkpoint, read_checkpoint, replacing
from lit_transformer.class_paths import import_class
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.errors import ROOM_FOR_A_MODEL, InputError, short_of_memory
from lit_transformer.hub import HUB_NAME, fetch_from_hub
from lit_transformer.interfaces import TranslationNetwork
from lit_transformer.json_files import read_json

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.json"

_NO_TOKENIZER = "holds no tokenizer, so it cannot translate by itself; train with a data module that has one"
_NO_SPEC = (
    "does not say how to build its network, so it cannot translate by itself; train a TranslationNetwork whose "
    "arguments are plain data, with LitTransformer"
)

Model = tuple[TranslationNetwork, SubwordTokenizer]


def read_model(path: str | Path, revision: str | None = None) -> Model:
    """The network and the tokenizer out of a file, a folder or the Hub, without running code that comes with them.

    A network of one's own is imported from where Python looks for modules; commands look in the current folder too.
    What lies in the folder of the model or of the run is not imported.

    Args:
        path: A ``.ckpt`` file, the folder of a run, a folder that ``write_model`` made, or ``owner/name`` on the Hub.
        revision: Branch, tag or commit on the Hub; None is the main branch.

    Raises:
        CheckpointError: If there is nothing there to translate with.
    """
    path = weights_of(path, revision)
    return _from_folder(path) if holds_model(path) else _from_checkpoint(path)


def holds_model(path: Path) -> bool:
    """Whether this is the folder of a model, of ours or of another package, rather than of a run or a checkpoint."""
    return any((path / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE))


def folder_of_run(checkpoint: Path) -> Path | None:
    """The folder that a checkpoint came in, whose code does not run; None if it is the current one or holds it."""
    inside = checkpoint.absolute().parent
    folder = inside.parent if inside.name == "checkpoints" else inside
    return None if Path.cwd().is_relative_to(folder) else folder


def write_model(network: TranslationNetwork, tokenizer: SubwordTokenizer, folder: str | Path) -> Path:
    """Writes weights (safetensors), configuration (JSON) and tokenizer (JSON) into a folder.

    Raises:
        ValueError: If the network was built with arguments that JSON cannot hold.
    """
    folder = Path(folder)
    try:
        config = json.dumps(network.spec, indent=2)
    except TypeError as error:
        raise ValueError(f"{type(network).__name__} has arguments that JSON cannot hold: {error}") from None
    with replacing(folder / CONFIG_FILE) as partial:
        partial.write_text(config, encoding="utf-8")
    tokenizer.save(folder / TOKENIZER_FILE)
    with replacing(folder / WEIGHTS_FILE) as partial:
        safetensors.torch.save_model(network, str(partial))
    return folder


def local_folder(path: str | Path, revision: str | None = None) -> Path:
    """The path, or where the Hub's model of this name has been fetched to if there is nothing of that name here.

    The Hub is not asked for ``owner/name`` where there is a folder ``owner``.

    Raises:
        CheckpointError: If it is no name of the Hub either, or cannot be fetched.
    """
    name, path = str(path), Path(path)
    if path.exists() or path.suffix == ".ckpt" or not HUB_NAME.fullmatch(name):
        return path
    if path.parent.exists():  # a mistyped run is not to be asked for on the network
        raise CheckpointError(
            f"{name} does not exist, and is not looked for on the Hub, since there is a folder {path.parent} here; "
            "give a .ckpt file, the folder of a run or an exported folder"
        )
    return fetch_from_hub(name, revision)


def weights_of(checkpoint: str | Path, revision: str | None = None) -> Path:
    """The file or exported folder that ``Translator.from_pretrained`` takes for a run, a checkpoint or a name.

    Raises:
        CheckpointError: If there is nothing there to translate with.
    """
    path = local_folder(checkpoint, revision)
    if path.is_dir() and not holds_model(path):
        return newest_checkpoint(path)
    return path


def build_network(spec: dict[str, Any], folder: Path | None = None) -> TranslationNetwork:
    """Builds the network that ``TranslationNetwork.spec`` describes, with fresh weights.

    Args:
        spec: Import path of the class, and its arguments.
        folder: Where the description lies, if nothing there may be imported.

    Raises:
        CheckpointError: If the class cannot be imported, is not a ``TranslationNetwork``, or refuses its arguments.
    """
    if not isinstance(spec, dict):  # a part of a network, as a file has it
        raise CheckpointError(f"a network is described by an object, got {type(spec).__name__}")
    class_path, arguments = str(spec.get("class_path", "")), spec.get("init_args", {})
    try:
        network_class = import_class(class_path, TranslationNetwork, "network", folder)  # type: ignore[type-abstract]
    except InputError as error:
        raise CheckpointError(str(error)) from None
    try:
        return network_class.from_arguments(arguments, lambda part: build_network(part, folder))
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{class_path} does not accept the stored arguments: {error}") from None


def _from_checkpoint(path: Path) -> Model:
    content = read_checkpoint(path)
    arguments, state = content.get("hyper_parameters"), _stored_tokenizer(content)
    spec = arguments.get("network") if isinstance(arguments, dict) else None
    if not isinstance(spec, dict) or state is None:
        raise CheckpointError(f"{path} {_NO_TOKENIZER if isinstance(spec, dict) else _NO_SPEC}")
    prefix = "network."
    weights = {
        key.removeprefix(prefix).replace("_orig_mod.", ""): value
        for key, value in content["state_dict"].items()
        if key.startswith(prefix)
    }
    folder = folder_of_run(path)
    with _naming(path):
        with UndrawnWeights():
            network = build_network(spec, folder)
        tokenizer = SubwordTokenizer.from_state(state, folder)
        network.load_state_dict(weights)
    return network, tokenizer


def _from_folder(folder: Path) -> Model:
    files = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
    missing = next((name for name in files if not (folder / name).is_file()), None)
    other = _other_format(folder)
    if other is not None:
        raise CheckpointError(f"{folder} holds {other}")
    if missing is not None:
        raise CheckpointError(f"{folder} is not a complete model folder: it has no {missing}; export it again")
    with _naming(folder):
        spec = read_json(folder / CONFIG_FILE)
        if not isinstance(spec, dict):
            raise ValueError(f"{CONFIG_FILE} should hold an object, got {type(spec).__name__}")
        with UndrawnWeights():
            network = build_network(spec, folder)
        tokenizer = SubwordTokenizer.load(folder / TOKENIZER_FILE, folder)
        safetensors.torch.load_model(network, folder / WEIGHTS_FILE)
    return network, tokenizer


def _other_format(folder: Path) -> str | None:
    """What a folder holds that was written for somebody else, and what to do with it; None if it may be ours."""
    if any(folder.glob("*.onnx")) or any(folder.glob("*.pt2")):
        return "an export for other runtimes, which cannot be read back: take the checkpoint that it was made from"
    if (folder / "model.bin").is_file() and any(folder.glob("*vocabulary.*")):
        return (
            "a model of CTranslate2, which translate and serve read with --engine ctranslate2: here the checkpoint "
            "that it was made of is needed"
        )
    try:
        config = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError):
        return None
    if isinstance(config, dict) and "model_type" in config and "class_path" not in config:
        return f"a Hugging Face model of type {config['model_type']}: read it with lit-transformer import first"
    return None


def _stored_tokenizer(content: dict[str, Any]) -> dict[str, Any] | None:
    """The tokenizer that the data module, of whatever class, left in a checkpoint."""
    for value in content.values():
        if isinstance(value, dict) and isinstance(value.get("tokenizer"), dict):
            tokenizer: dict[str, Any] = value["tokenizer"]
            return tokenizer
    return None


@contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Names the file or folder in whatever is wrong with what it holds."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{place} cannot be used: {error}") from None
    except RuntimeError as error:
        if device := short_of_memory(error):
            raise CheckpointError(
                f"{device} has too little memory for the model in {place}: {ROOM_FOR_A_MODEL}"
            ) from None
        reason = str(error).splitlines()[-1].strip()  # of load_state_dict: many lines, the last the most particular
        raise CheckpointError(f"the weights in {place} do not fit the network it describes: {reason}") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{place} is damaged: {error}") from None
