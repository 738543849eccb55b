"""The shape of the package, read from its imports: layers point downward, third parties stay behind their fences."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import alflb

ROOT = Path(alflb.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

LAYERS = [
    ["problem", "registry"],
    ["schedules", "threads", "precision"],
    ["io", "bounds", "kernels"],
    ["duality", "traces", "population"],
    ["streams", "exact", "observers", "trajectory"],
    ["rules", "metrics"],
    ["simulation", "training"],
    ["advice", "plotting"],
    ["studies"],
    ["cli"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

FENCES = {
    "numba": ("kernels/", "exact/"),
    "torch": ("kernels/torch_.py", "cli/doctor.py", "training/"),
    "transformers": ("training/trainer.py",),
    "triton": ("kernels/triton_.py",),
    "cvxpy": ("exact/reference/cvxpy_.py",),
    "highspy": ("exact/reference/highs.py",),
    "ortools": ("exact/reference/_flow_worker.py",),
    "matplotlib": ("plotting.py", "studies/report.py"),
    "pyarrow": ("io.py",),
    "distributed": ("studies/executors.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
}


def imports(path):
    """Every imported module name, function-level imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "alflb":
                yield from (f"alflb.{alias.name}" for alias in node.names)


def part(name):
    """The layer member a dotted module name belongs to, if any."""
    pieces = name.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[0] == "alflb" and pieces[1] in RANK else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_downward(path):
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    if own == "__init__":
        return
    assert own in RANK, f"give {own} a place in LAYERS"
    for name in imports(path):
        other = part(name)
        assert other in (None, own) or RANK[other] < RANK[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_third_parties_stay_behind_their_fences(path):
    place = path.relative_to(ROOT).as_posix()
    for name in imports(path):
        package = name.split(".")[0]
        allowed = FENCES.get(package)
        assert allowed is None or place.startswith(allowed), f"{place} imports {package}"


def modules_after(statement):
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_alflb_is_light():
    assert not {"numpy", "numba", "cvxpy", "matplotlib", "highspy", "pyarrow", "torch"} & modules_after("import alflb")


def test_using_the_core_loads_no_solver_no_plotting_and_no_compiler():
    loaded = modules_after("import alflb; alflb.simulate; alflb.AssignmentProblem; alflb.make_stream; alflb.max_vio")
    assert not {"numba", "cvxpy", "matplotlib", "highspy", "pyarrow", "torch"} & loaded


def test_every_public_name_is_there():
    for name in alflb.__all__:
        assert getattr(alflb, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = alflb.nothing
