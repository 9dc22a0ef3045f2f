"""Imports only go downwards, and the runtime reaches numpy and onnxruntime and nothing else."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "mimi_export"

# Rooms by floor. A room imports rooms of lower floors only, types included; inside a room there is no circle.
FLOORS = {
    "errors": 1,
    "contract": 2,
    "passes": 3,
    "media": 3,
    "remote": 3,
    "model": 4,
    "runtime": 4,
    "export": 5,
    "corpus": 5,
    "hub": 5,
    "web": 5,
    "serving": 5,
    "parity": 6,
    "bench": 6,
    "cli": 7,
}

# Packages of the index that a room and everything it reaches may import, types included.
PACKAGES: dict[str, set[str]] = {
    "errors": set(),
    "contract": {"tomli"},  # the standard `tomllib` of Python 3.10
    "runtime": {"numpy", "onnxruntime"},
    "runtime.features": {"numpy", "onnxruntime", "soxr"},
    "runtime.golden": {"numpy", "onnxruntime", "safetensors"},
    "media": {"numpy", "safetensors", "soundfile", "soxr"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path: Path) -> set[str]:
    """Full names of what a module imports; `from a import b` gives `a.b`, which may be a module or a name in it.

    Imports inside functions and for types count.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
FACE = {"mimi_export", "mimi_export.__main__"}  # above all floors
ROOMS = [module for module in MODULES if module not in FACE]


def own(name: str) -> str | None:
    """The module of this package that an imported name is or is in."""
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


def imported_modules(name: str) -> set[str]:
    found = {own(imported) for imported in imports(MODULES[name])}
    return {module for module in found if module is not None and module != name}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_one_place():
    assert {room_of(module) for module in ROOMS} == set(FLOORS)


def test_the_face_imports_when_it_is_used():
    """So a room that asks it for the version runs nothing else."""
    for node in ast.parse(MODULES["mimi_export"].read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert node.module in ("__future__", "typing")
        elif not isinstance(node, ast.FunctionDef):
            waits = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            assert waits or not any(isinstance(inner, (ast.Import, ast.ImportFrom)) for inner in ast.walk(node))


@pytest.mark.parametrize("module", ROOMS)
def test_rooms_import_lower_floors_only(module):
    """Types included; of the package's own face only the version and the place."""
    room = room_of(module)
    for imported in imported_modules(module):
        if imported in FACE:
            names = {name for name in imports(MODULES[module]) if own(name) in FACE}
            assert names <= {"mimi_export.__version__", "mimi_export.__file__"}
            continue
        other = room_of(imported)
        assert other == room or FLOORS[other] < FLOORS[room], (
            f"{module} (floor {FLOORS[room]}) imports {imported} (floor {FLOORS[other]})"
        )


@pytest.mark.parametrize("room", FLOORS)
def test_no_cycles(room):
    """Modules of one room may use each other, but not in a circle, types included."""
    graph = {module: imported_modules(module) for module in ROOMS if room_of(module) == room}
    while graph:
        free = [module for module, imported in graph.items() if not imported & graph.keys()]
        assert free, f"these import each other in a circle: {sorted(graph)}"
        for module in free:
            del graph[module]


def reachable(start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        module = todo.pop()
        if module not in seen | FACE:
            seen.add(module)
            todo += [*imported_modules(module), module.rpartition(".")[0] or module]  # a package runs with its modules
    return seen


@pytest.mark.parametrize("start", [module for module in ROOMS if room_of(module) in PACKAGES])
def test_lower_rooms_reach_few_packages(start):
    """Not even inside a function or for a type; `sys.stdlib_module_names` tells the standard library."""
    packages = PACKAGES.get(start.removeprefix("mimi_export."), PACKAGES[room_of(start)])
    allowed = packages | set(sys.stdlib_module_names) | {"mimi_export"}
    for module in reachable(start):
        foreign = {name.split(".")[0] for name in imports(MODULES[module])} - allowed
        assert not foreign, f"{start} reaches {module}, which imports {sorted(foreign)}"


def test_nothing_imports_the_command_line():
    users = {module for module in ROOMS for name in imported_modules(module) if name.startswith("mimi_export.cli")}
    assert {room_of(user) for user in users} <= {"cli"}, users


def test_the_runtime_loads_no_http():
    """A fifth of the time of its import; only `load` from the Hub needs it."""
    loaded = "import sys, mimi_export.runtime; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"http.client", "urllib.request", "ssl"} & set(done.stdout.split())
