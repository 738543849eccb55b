"""How loops become machine code: compiled by numba, kept on disk where that is possible, plain where numba is off.

Numba's own cache notices a change of the file in which a function stands, but not of the files whose functions and
constants went into its machine code; and where no folder can be written, it refuses to compile at all. The cache here
looks at all of those files, and does without a folder.

With ``NUMBA_DISABLE_JIT=1`` functions stay as they are and run as Python, for debugging and coverage.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, njit, types
from numba.core import caching

_PACKAGE = Path(__file__).parents[1]
_NUMPY_RULES = {"nogil": True, "error_model": "numpy"}
"""Division by zero as in numpy: a check for it keeps loops from becoming vector code."""


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function that may allocate arrays of its own."""
    return _compile(function)


def jit_borrowing(function: Callable[..., Any]) -> Any:
    """Compile a function that only borrows its arrays and allocates none.

    Saying so (_nrt=False) spares two atomic operations per array and call, which would cost more than the work.
    """
    return _compile(function, _nrt=False)


def jit_inline(function: Callable[..., Any]) -> Any:
    """The same for a function with one caller, which LLVM would otherwise optimize twice: alone and in the caller."""
    return _compile(function, _nrt=False, inline="always")


def cache_folder() -> Path | None:
    """Where the kernels of this folder are kept; None if no folder can be written."""
    try:
        return Path(_KeptCode(cache_folder).locator.get_cache_path())
    except RuntimeError:
        return None


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    if config.DISABLE_JIT:
        return np.errstate(all="ignore")(function)  # compiled code overflows and makes NaN in silence
    dispatcher = njit(**_NUMPY_RULES, **options)(function)
    dispatcher.get_call_template = _without_literals(dispatcher.get_call_template)
    try:
        dispatcher._cache = _Cache(function)
    except RuntimeError:  # numba's, when it finds no folder to write to
        dispatcher._cache = _NoCache()
    return dispatcher


def _without_literals(get_call_template: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function that is called with numbers of the code compiled for their types, not once more for each."""

    def get_template(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        plain = {name: types.unliteral(kind) for name, kind in kws.items()}
        return get_call_template(tuple(map(types.unliteral, args)), plain)

    return get_template


# ------------------------------------------------------------------------------------- the cache


@lru_cache
def source_stamp(path: Path) -> str:
    """A digest of a source file and of all files of this package that it imports, directly or not."""
    found, waiting = {path}, [path]
    while waiting:
        new = set(_imported_files(waiting.pop())) - found
        found |= new
        waiting += new
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in sorted(found)]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _imported_files(path: Path) -> Iterator[Path]:
    """Files of this package named in a file's import statements."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == _PACKAGE.name:
            module = _PACKAGE.parent.joinpath(*node.module.split("."))
            names = [module, *(module / alias.name for alias in node.names)]
            yield from (file for name in names if (file := name.with_suffix(".py")).is_file())


class _Stamped:
    """Makes numba's locators of cache folders look at all files that went into a function."""

    _py_file: str

    def get_source_stamp(self) -> str:
        return source_stamp(Path(self._py_file))


class _InUserFolder(_Stamped, caching.UserProvidedCacheLocator):
    """NUMBA_CACHE_DIR."""


class _InTree(_Stamped, caching.InTreeCacheLocator):
    """__pycache__ beside the source."""


class _InHome(_Stamped, caching.UserWideCacheLocator):
    """The user's own cache folder."""


class _KeptCode(caching.CompileResultCacheImpl):
    _locator_classes = (_InUserFolder, _InTree, _InHome)


class _Cache(caching.FunctionCache):
    _impl_class = _KeptCode

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # whatever unpickling a damaged file may raise; the function is compiled anew
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        try:
            super().save_overload(signature, result)
        except Exception:  # the same, or a full disk, or a folder that has gone
            self._start_afresh(signature, result)

    def _start_afresh(self, signature: Any, result: Any) -> None:
        try:
            self.flush()
            super().save_overload(signature, result)
        except OSError:
            _say_not_kept()


class _NoCache(caching.NullCache):
    def save_overload(self, signature: Any, result: Any) -> None:
        _say_not_kept()


@lru_cache
def _say_not_kept() -> None:
    """Say so once per process."""
    sys.stderr.write(
        "alflb: compiled code cannot be kept, since no folder for it can be written; every process compiles anew, "
        "for some twenty seconds. Set NUMBA_CACHE_DIR to a folder that can be written.\n"
    )
