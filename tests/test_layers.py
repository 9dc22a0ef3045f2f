"""Imports only go downwards, and the runtime reaches neither torch nor onnx."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "mimi_export"

# A module may import modules of lower layers, and of its own where no cycle comes of it (checked below).
# A room is a module or a package below `mimi_export`; what is in a package has the package's layer.
LAYERS = {
    0: ("mimi_export", "errors", "geometry", "network", "spec", "manifest", "manifest_check", "variants"),
    1: ("files", "signals", "audio", "codes", "upstream", "synthetic", "checkpoint", "hub_download", "artifact",
        "kyutai", "steps"),
    2: ("graphs", "taps", "passes", "runtime"),
    3: ("export", "golden", "build", "precision", "convert", "batch", "batch_check", "batch_files", "sensitivity",
        "parity", "bench", "report", "hub"),
    4: ("cli",),
}  # fmt: skip

RUNTIME_PACKAGES = {"numpy", "onnxruntime", "safetensors", "soundfile", "soxr"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def for_types_only(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@functools.cache
def imports(path: Path, types: bool = True) -> set[str]:
    """Full names of what a module imports; `from a import b` gives `a.b`, which may be a module or a name in it.

    Imports inside functions count; those for types only if `types`.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    never = {id(inner) for node in ast.walk(tree) if for_types_only(node) for inner in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in never and not types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def own(name: str) -> str | None:
    """The module of this package that an imported name is or is in."""
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


def imported_modules(name: str, types: bool = True) -> set[str]:
    found = {own(imported) for imported in imports(MODULES[name], types)}
    return {module for module in found if module is not None and module != name}


def room_of(module: str) -> str:
    return "mimi_export" if module == "mimi_export" else module.split(".")[1]


ROOMS = {room: layer for layer, rooms in LAYERS.items() for room in rooms}
PLACED = {module: ROOMS[room_of(module)] for module in MODULES if room_of(module) in ROOMS}


def test_every_module_has_one_place():
    homeless = sorted({room_of(module) for module in MODULES} - set(ROOMS))
    assert not homeless, f"give these a place in the table of layers: {homeless}"
    assert len(ROOMS) == sum(map(len, LAYERS.values())), "a room is in two layers"


@pytest.mark.parametrize("module", PLACED)
def test_imports_only_downwards(module):
    for imported in imported_modules(module) & PLACED.keys():
        assert PLACED[imported] <= PLACED[module], (
            f"{module} (layer {PLACED[module]}) imports {imported} (layer {PLACED[imported]})"
        )


def test_no_cycles():
    """Modules of one layer may use each other, but not in a circle."""
    graph = {module: imported_modules(module, types=False) for module in MODULES}
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
        if module not in seen:
            seen.add(module)
            todo += imported_modules(module, types=False)
    return seen


@pytest.mark.parametrize("start", [module for module in MODULES if module.startswith("mimi_export.runtime")])
def test_runtime_reaches_only_base_packages(start):
    """Not even inside a function; `sys.stdlib_module_names` tells the standard library."""
    allowed = RUNTIME_PACKAGES | set(sys.stdlib_module_names) | {"mimi_export"}
    for module in reachable(start):
        foreign = {name.split(".")[0] for name in imports(MODULES[module], types=False)} - allowed
        assert not foreign, f"{start} reaches {module}, which imports {sorted(foreign)}"


def test_nothing_imports_the_command_line():
    users = {module for module in MODULES for name in imported_modules(module) if room_of(name) == "cli"}
    assert {room_of(user) for user in users} <= {"cli"}, users


def test_pure_data_is_pure():
    """Layer 0 needs the standard library and nothing else (`tomli` is the standard `tomllib` of Python 3.10)."""
    for module in (module for module, layer in PLACED.items() if layer == 0):
        foreign = {name.split(".")[0] for name in imports(MODULES[module])} - set(sys.stdlib_module_names)
        assert foreign <= {"mimi_export", "tomli"}, f"{module} imports {sorted(foreign)}"
