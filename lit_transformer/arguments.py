"""What an object was made with, so that a checkpoint can say how to make it again."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

T = TypeVar("T")


class RemembersArguments:
    """Records the constructor's arguments by name, defaults included, before the constructor runs.

    Attributes:
        init_args: The arguments; not there in what copy and pickle make before they fill it.

    Raises:
        TypeError: If there are arguments without a name in ``*args``, which nobody could give by name.

    Example:
        >>> class Pair(RemembersArguments):
        ...     def __init__(self, left: int, right: int = 2, **more: int) -> None: ...
        >>> Pair(1, up=3).init_args
        {'left': 1, 'right': 2, 'up': 3}
    """

    init_args: dict[str, Any]
    _takes_nameless = False  # whether arguments in ``*args`` are kept apart instead of refused
    _nameless: tuple[Any, ...] = ()

    def __new__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        """An empty object that knows what it is about to be made with."""
        made: T = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        try:
            bound = signature.bind(made, *args, **kwargs)
        except TypeError:  # copy and pickle give no arguments; wrong ones fail in __init__
            return made
        bound.apply_defaults()
        values = dict(bound.arguments)
        values.pop(next(iter(signature.parameters)))
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                values.update(values.pop(name))
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL and (nameless := values.pop(name)):
                if cls._takes_nameless:  # type: ignore[attr-defined]
                    object.__setattr__(made, "_nameless", nameless)
                    continue
                raise TypeError(
                    f"{cls.__name__} got {len(nameless)} arguments without a name in *{name}: give them by name, so "
                    "that a checkpoint can say how to build it again"
                )
        object.__setattr__(made, "init_args", values)  # a module takes no attributes yet
        return made


def is_plain(value: object) -> bool:
    """Whether a value can go into a checkpoint that loads without running code."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
