"""The Hub of Hugging Face: where a model is fetched from, and what goes wrong there, in one sentence each."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_transformer.interfaces import InputError
from lit_transformer.json_files import read_json

logger = logging.getLogger(__name__)

FILES = ("config.json", "model.safetensors", "tokenizer.json")
LIBRARY = "lit-transformer"
HUB_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9_]", re.ASCII)  # owner/name
_UNREACHABLE = "there is no {0} here, and the Hub cannot be reached for it: check the name, or try again online"


def fetch_from_hub(name: str, revision: str | None = None) -> Path:
    """The folder, in the cache of the Hub's own package, with the model of a repository.

    Args:
        name: ``owner/name``.
        revision: Branch, tag or commit; None is the main branch.

    Raises:
        InputError: If the Hub cannot be reached and nothing is cached, there is no such model of ours, or its network
            or tokenizer is not of this package, so that to build it would be to run code that the repository chose.
    """
    from huggingface_hub import snapshot_download

    check_name(name)
    logger.info("fetching %s from the Hub of Hugging Face", name)
    with speaking_plainly(name):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES), library_name=LIBRARY))
    missing = next((file for file in FILES if not (folder / file).is_file()), None)
    if missing is not None:
        raise InputError(f"{name} of the Hub is no model of lit-transformer: it has no {missing}")
    network = _content(folder / "config.json")
    if not isinstance(network, dict) or not isinstance(network.get("class_path"), str):
        raise InputError(f"{name} of the Hub is no model of lit-transformer: its config.json names no network class")
    for what, content in (("network", network), ("tokenizer", _content(folder / "tokenizer.json"))):
        for class_path in _class_paths(content):
            _check_class(name, what, class_path)
    return folder


def _content(file: Path) -> Any:
    """What a file holds; None if it is no JSON."""
    try:
        return read_json(file)
    except ValueError:
        return None


def _class_paths(content: Any) -> Iterator[Any]:
    """The classes that are named anywhere in what a file holds: a network may be made of others."""
    if isinstance(content, dict):
        if "class_path" in content:
            yield content["class_path"]
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from _class_paths(part)


def _check_class(name: str, what: str, class_path: Any) -> None:
    """Refuses a class that is not of this package, before anything is imported for it."""
    if not str(class_path).startswith("lit_transformer."):
        raise InputError(
            f"{name} of the Hub asks for the {what} class {class_path!r}, and only those of lit_transformer are built "
            f"for a name of the Hub: if you trust it, run hf download {name} --local-dir FOLDER and give FOLDER"
        )


def check_name(name: str) -> None:
    """Checks that a repository is named by its owner and its own name.

    Raises:
        InputError: If it is not.
    """
    if not HUB_NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of a repository: write owner/name")


@contextmanager
def speaking_plainly(name: str) -> Iterator[None]:
    """Turns what the Hub's package raises into one sentence."""
    errors: Any = importlib.import_module("huggingface_hub.errors")
    bars = logging.getLogger("huggingface_hub")
    level = bars.level
    bars.setLevel(logging.ERROR)
    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(f"there is no {name} here, and it is no name of a repository of the Hub: {error}") from None
    except errors.GatedRepoError:
        raise InputError(f"{name} of the Hub asks for consent first: give it on its page, then log in") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{name} of the Hub has no such revision; name another branch, tag or commit") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"there is no {name} on the Hub you may see: check the name, or log in if it is private (hf auth login)"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        raise InputError(_UNREACHABLE.format(name)) from None
    except errors.LocalTokenNotFoundError:
        raise InputError("the Hub needs a token: log in with hf auth login, or set HF_TOKEN") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise InputError(
                f"the Hub refuses access to {name} ({status}): log in (hf auth login) with a token that may do this"
            ) from None
        raise InputError(f"the Hub answers with status {status} for {name}: {error.server_message or error}") from None
    except errors.HTTPError:  # of the connection, without an answer
        raise InputError(_UNREACHABLE.format(name)) from None
    finally:
        bars.setLevel(level)
