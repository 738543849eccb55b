"""``alflb doctor``: versions, threads, the compiled kernels' cache, a GPU, extras, and what is lacking."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from packaging.requirements import Requirement

from alflb import __version__
from alflb.cli._arguments import JsonOption
from alflb.cli._console import print_facts, print_json, reports_errors
from alflb.io import provenance
from alflb.threads import num_threads
from alflb.verdict import Finding


@reports_errors
def doctor(as_json: JsonOption = False) -> None:
    """What this installation is and what it lacks; exit code 1 if something that alflb needs is not in order."""
    found = examine()
    if as_json:
        print_json([one._asdict() for one in found])
    else:
        print_facts({one.statement: _in_words(one) for one in found}, False, "", None, _conclusion(found))
    if not all(one.holds for one in found):
        raise SystemExit(1)


def _conclusion(found: list[Finding]) -> str:
    faults = [one.statement for one in found if not one.holds]
    return f"Not in order: {', '.join(faults)}." if faults else "Everything that alflb needs is in order."


def _in_words(found: Finding) -> str:
    words = found.measured if found.expected == "-" else f"{found.measured} (needs {found.expected})"
    return words if found.holds else f"NOT IN ORDER: {words}"


def examine() -> list[Finding]:
    """Everything worth knowing before asking for help, in the order to read it.

    Raises
    ------
    ValueError
        If alflb runs from a folder of its source without being installed: what it needs is then not known.

    Examples
    --------
    >>> found = {one.statement: one for one in examine()}
    >>> found["numpy"].holds
    True
    """
    if _installed("alflb") is None:
        raise ValueError("alflb is not installed, only its source is on the path; install it by: pip install -e .")
    return [
        Finding("python", "-", f"{provenance()['python']}, {provenance()['machine']}", True),
        Finding("alflb", "-", _own_version(), True),
        *_required(),
        Finding("threads", "-", f"{num_threads()} on {_usable_cores()} usable cores", True),
        _kernel_cache(),
        _gpu(),
        *_extras(),
    ]


def _own_version() -> str:
    home = Path(__file__).parents[1]
    return f"{__version__}, commit {provenance()['commit']}, {home}"


def _required() -> list[Finding]:
    """The packages that alflb needs, and whether they are there and new enough."""
    found = []
    for requirement in _requirements(extra=""):
        version = _installed(requirement.name)
        fit = version is not None and requirement.specifier.contains(version, prereleases=True)
        found.append(Finding(requirement.name, str(requirement.specifier), version or "missing", fit))
    return found


def _requirements(extra: str) -> list[Requirement]:
    """What the installed package, or an extra of it, requires; extras of ours in there are followed."""
    every = [Requirement(text) for text in importlib.metadata.requires("alflb") or ()]
    base = [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]
    if not extra:
        return base
    found: list[Requirement] = []
    for one in every:
        if one not in base and one.marker is not None and one.marker.evaluate({"extra": extra}):
            if one.name == "alflb":
                found += [other for inner in sorted(one.extras) for other in _requirements(inner)]
            else:
                found.append(one)
    return found


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compiled_kernels() -> int | None:
    """How many compiled functions the kernels' cache holds; None if no folder for it can be written."""
    from alflb.kernels._jit import cache_folder

    folder = cache_folder()
    return None if folder is None else len(list(folder.glob("*.nbi")))


def _kernel_cache() -> Finding:
    """Compiled kernels are kept on disk; without that every process compiles anew, for tens of seconds."""
    from alflb.kernels._jit import cache_folder

    folder, compiled = cache_folder(), compiled_kernels()
    if compiled is None:
        return Finding("kernel cache", "-", "no folder can be written; set NUMBA_CACHE_DIR to one that can", False)
    return Finding("kernel cache", "-", f"{folder}, can be written, {compiled} functions in it", True)


def _gpu() -> Finding:
    if _installed("torch") is None:
        return Finding("GPU", "-", "not looked for: torch is not installed", True)
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("GPU", "-", ", ".join(names) or "none that torch can use", True)


def _extras() -> list[Finding]:
    """Each optional extra: there, or what it lacks and how to get it."""
    names = importlib.metadata.metadata("alflb").get_all("Provides-Extra") or []
    found = []
    for extra in sorted(names):
        lacking = [one.name for one in _requirements(extra) if _installed(one.name) is None]
        how = f"lacks {', '.join(lacking)}: pip install 'alflb[{extra}]'"
        found.append(Finding(f"extra {extra}", "-", how if lacking else "there", True))
    return found
