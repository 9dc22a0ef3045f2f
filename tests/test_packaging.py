"""What pyproject.toml declares is what the package imports, no more and no less."""

import ast
import functools
import re
import sys

import pytest
from conftest import REPOSITORY

tomllib = pytest.importorskip("tomllib")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROGRAMS = {"mypy", "pytest_timeout", "pytest_xdist", "ruff"}  # are run, or plug themselves in
ELSEWHERE = {
    "google",  # protobuf, which onnx brings along
    "moshi",  # in an environment of its own, for the benchmark
    "rustymimi",
}


def import_name(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0].replace("-", "_").removesuffix("_python")


@functools.cache
def imported(folder: str) -> set[str]:
    """Packages that a folder imports, those by `import_module` too."""
    found = set()
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
            elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                found |= {part.value for part in ast.walk(node) if isinstance(getattr(part, "value", 0), str)}
    return {name.split(".")[0] for name in found if name}


EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [*PROJECT["dependencies"], *(one for name, extra in EXTRAS.items() if name != "dev" for one in extra)]


@pytest.mark.parametrize("requirement", NEEDED)
def test_what_is_declared_is_imported(requirement):
    assert import_name(requirement) in imported("mimi_export")


@pytest.mark.parametrize("requirement", EXTRAS["dev"])
def test_what_the_tests_need_is_imported(requirement):
    assert import_name(requirement) in imported("tests") | PROGRAMS


def test_what_is_imported_is_declared():
    foreign = imported("mimi_export") - set(sys.stdlib_module_names) - {"mimi_export"} - ELSEWHERE
    assert foreign <= {import_name(requirement) for requirement in NEEDED}
