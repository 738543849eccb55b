"""The shape of the package, read from its imports: layers point downward, nothing goes in a circle, fences hold."""

import ast
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import alflb

ROOT = Path(alflb.__file__).parent
PATHS = {
    ".".join(("alflb", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
LAYERS = tomllib.loads((ROOT.parent / "docs" / "layers.toml").read_text())["layer"]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer["modules"]}

FENCES = {
    "numba": ("kernels/", "exact/"),
    "torch": ("kernels/torch_.py", "traces/foreign.py", "cli/doctor.py", "cli/training.py", "training/"),
    "transformers": ("training/trainer.py", "cli/training.py"),
    "triton": ("kernels/triton_.py",),
    "cvxpy": ("exact/reference/cvxpy_.py",),
    "highspy": (),
    "ortools": ("exact/reference/mincostflow.py",),
    "matplotlib": ("plotting.py", "online.py", "studies/figures.py", "studies/report.py"),
    "pyarrow": ("io.py", "traces/foreign.py"),
    "distributed": ("studies/executors.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
}


def imports(path, *, whole=True):
    """Names of imported modules, submodules in full: of the whole file, or only of what runs when it is imported."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if whole else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in PATHS else node.module for name in inner)


def part(module):
    """The member of a layer that a dotted module name belongs to; None for alflb itself and for third parties."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[0] == "alflb" else None


def test_every_part_has_one_layer():
    listed = [name for layer in LAYERS for name in layer["modules"]]
    assert sorted(listed) == sorted({part(module) for module in PATHS} - {None})


def test_imports_point_downward():
    upward = [
        f"{module} imports {name}"
        for module, path in PATHS.items()
        for name in imports(path)
        if part(module) and part(name) and part(name) != part(module) and RANK[part(name)] >= RANK[part(module)]
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    """Inside packages too. What a function imports when it is called is left out: a registry loads its plug-ins so."""
    graph = {
        module: {name for name in imports(path, whole=False) if name in PATHS} - {"alflb"}
        for module, path in PATHS.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_third_parties_stay_behind_their_fences():
    strayed = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in PATHS.values()
        for name in imports(path)
        if not path.relative_to(ROOT).as_posix().startswith(FENCES.get(name.split(".")[0], ""))
    ]
    assert not strayed


def modules_after(statement):
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_alflb_is_light():
    assert not {"numpy", "numba", "cvxpy", "matplotlib", "highspy", "pyarrow", "torch"} & modules_after("import alflb")


def test_the_command_line_answers_without_the_heavy_packages():
    loaded = modules_after("import alflb.cli.app")
    assert not {"numba", "cvxpy", "matplotlib", "highspy", "pyarrow", "torch"} & loaded


def test_using_the_core_loads_no_solver_no_plotting_and_no_compiler():
    loaded = modules_after("import alflb; alflb.simulate; alflb.AssignmentProblem; alflb.make_stream; alflb.max_vio")
    assert not {"numba", "cvxpy", "matplotlib", "highspy", "pyarrow", "torch"} & loaded


def test_every_public_name_is_there():
    for name in alflb.__all__:
        assert getattr(alflb, name) is not None
    assert alflb.plotting.WIDTH > 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = alflb.nothing
