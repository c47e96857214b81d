"""Classes by their import path, as checkpoints name them."""

from __future__ import annotations

import glob
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, TypeVar

from lit_transformer.errors import InputError

T = TypeVar("T")


def class_path_of(cls: type) -> str:
    """How a checkpoint names a class.

    Example:
        >>> class_path_of(InputError)
        'lit_transformer.errors.InputError'
    """
    return f"{cls.__module__}.{cls.__qualname__}"


def is_importable(class_path: str) -> bool:
    """Whether another program can import a class of that name: one of a script or inside a function has none.

    Example:
        >>> is_importable("lit_transformer.Transformer"), is_importable("__main__.Mine")
        (True, False)
    """
    return class_path.split(".")[0] != "__main__" and "<locals>" not in class_path


def import_class(class_path: str, base: type[T], what: str, folder: Path | None = None) -> type[T]:
    """The class of that import path.

    Args:
        class_path: Module and class, with dots.
        base: What it must be derived from.
        what: What it is, for messages, such as ``network``.
        folder: Where the path was read, if no code that lies there may run.

    Raises:
        InputError: If the class cannot be imported, lies in ``folder``, or is not derived from ``base``.
    """
    module_name, _, class_name = class_path.rpartition(".")
    if not is_importable(class_path):
        raise InputError(
            f"the {what} class {class_path!r} was defined in a script, where nobody else can import it; move it into a "
            "module of its own and train from there"
        )
    if folder is not None and _lies_in(module_name, folder):
        raise InputError(
            f"the {what} class {class_path!r} would be imported from {folder} itself, and code that comes with a model "
            "is not run: read it, and call the command from another folder with that code installed"
        )
    try:
        found: Any = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        message = f"the {what} class {class_path!r} cannot be imported ({error}); install its package"
        raise InputError(message) from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{class_path!r} is not a {base.__name__}, so a checkpoint may not build it")
    return found


def _lies_in(module: str, folder: Path) -> bool:
    """Whether the import of a module would run a file of a folder, other than those of packages loaded already.

    Nothing is imported to find out: packages inside packages are looked for among the files.
    """
    folder, parts = folder.resolve(), module.split(".")
    places: list[str] = []
    for end, part in enumerate(parts, start=1):
        loaded = sys.modules.get(".".join(parts[:end]))
        if loaded is not None:
            places = list(getattr(loaded, "__path__", []))
            continue
        if end == 1:
            found = _places(part)
        else:  # a folder, or a file of any ending that Python may know
            found = [str(file) for place in places for file in Path(place).glob(f"{glob.escape(part)}*")]
            found = [file for file in found if Path(file).name.partition(".")[0] == part]
        if any(Path(place).resolve().is_relative_to(folder) for place in found):
            return True
        places = [place for place in found if Path(place).is_dir()]
    return False


def _places(package: str) -> list[str]:
    """The file and the folders that Python would load a package or module from, which has no parent."""
    try:
        found = importlib.util.find_spec(package)  # runs nothing
    except (ImportError, ValueError):
        return []
    places = [found.origin, *(found.submodule_search_locations or [])] if found else []
    return [place for place in places if place]
