"""Names for things that plug in: one new file registers itself and is found by name everywhere."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The one error for every misspelled name: what it was, the nearest known name, and all names."""
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known_names = f"choose one of {', '.join(choices)}" if choices else "there is none"
    return ValueError(f"unknown {kind} {name!r}: {hint}{known_names}")


class Registry(Generic[T]):
    """A mapping from public names to classes, filled by decorators.

    Parameters
    ----------
    kind : str
        What the names stand for ("rule", "stream"); used in error messages.

    Examples
    --------
    >>> colors = Registry("color")
    >>> @colors.register("red")
    ... class Red: ...
    >>> colors.names()
    ['red']
    >>> colors.get("rde")
    Traceback (most recent call last):
    ...
    ValueError: unknown color 'rde': did you mean 'red'? choose one of red
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that files the class under `name`; a name is taken once."""

        def file_under_name(cls: type[T]) -> type[T]:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is registered already, by {self._classes[name]}")
            self._classes[name] = cls
            return cls

        return file_under_name

    def get(self, name: str) -> type[T]:
        """The class filed under `name`; ValueError with the nearest name when there is none."""
        try:
            return self._classes[name]
        except (KeyError, TypeError):
            raise unknown_name(self.kind, name, self._classes) from None

    def name_of(self, cls: type[T]) -> str:
        """The name a class was filed under, or the class's own name if it never was."""
        return next((name for name, known in self._classes.items() if known is cls), cls.__name__)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._classes)


def import_siblings(package: str, path: Iterable[str]) -> None:
    """Import every public module of a package, so that dropping a file in is all it takes to register."""
    for module in pkgutil.iter_modules(list(path)):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package}.{module.name}")
