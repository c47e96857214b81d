"""Classes by their import path, as checkpoints name them."""

from __future__ import annotations

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
    if module_name == "__main__" or "<locals>" in class_path:
        raise InputError(
            f"the {what} class {class_path!r} was defined in a script, where nobody else can import it; move it into a "
            "module of its own and train from there"
        )
    if folder is not None and _lies_in(module_name.partition(".")[0], folder):
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


def _lies_in(package: str, folder: Path) -> bool:
    """Whether the import of a package, which is none of those loaded already, would run a file of a folder."""
    if not package or package in sys.modules:
        return False
    try:
        found = importlib.util.find_spec(package)  # runs nothing, as it has no parent
    except (ImportError, ValueError):
        return False
    places = [found.origin, *(found.submodule_search_locations or [])] if found else []
    return any(Path(place).resolve().is_relative_to(folder.resolve()) for place in places if place)
