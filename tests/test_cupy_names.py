"""Without a GPU nothing here runs on CuPy, but every name that the numeric code takes from it must be there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gadgets" / "mrsi_gadgets"
NUMERIC = ["arrays.py", "operators", "reconstruction", "quantification", "models", "physics", "gadgets", "data.py"]
DTYPES = ["complex64", "complex128", "float32", "float64", "int64", "bool"]


def files() -> list[Path]:
    found = []
    for name in NUMERIC:
        path = PACKAGE / name
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return found


def dotted(node: ast.AST, aliases: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Names below the array namespace that an expression stands for: ``xp.fft.fftn`` is (fft, fftn), ``xp`` is ()."""
    if isinstance(node, ast.Attribute):
        below = dotted(node.value, aliases)
        return None if below is None else (*below, node.attr)
    if isinstance(node, ast.Name):
        return () if node.id == "xp" else aliases.get(node.id)
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
    return () if called in ("namespace", "array_namespace") else None


def names_in(tree: ast.AST) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every name taken from an array namespace, through variables as well, with its line."""
    aliases: dict[str, tuple[str, ...]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            below = dotted(node.value, {})
            if below is not None:
                aliases[node.targets[0].id] = below
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            below = dotted(node, aliases)
            if below:
                yield below, node.lineno


def has(module: ModuleType, names: tuple[str, ...]) -> bool:
    found: object = module
    for name in names:
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


@pytest.fixture(scope="module")
def cupy_namespace() -> ModuleType:
    pytest.importorskip("cupy", reason="the package cupy-cuda12x is not installed")
    import array_api_compat.cupy

    return array_api_compat.cupy


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_array_function_that_a_module_calls_exists_in_cupy(path, cupy_namespace):
    names = list(names_in(ast.parse(path.read_text(encoding="utf-8"))))
    missing = [f"line {line}: {'.'.join(name)}" for name, line in names if not has(cupy_namespace, name)]
    assert missing == []


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_that_is_asked_for_by_name_exists_in_cupy(name, cupy_namespace):
    assert hasattr(cupy_namespace, name)


def test_what_is_taken_from_cupy_itself_exists(cupy_namespace):
    import cupy

    tree = ast.parse((PACKAGE / "arrays.py").read_text(encoding="utf-8"))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    taken = {below for node in attributes if (below := dotted(node, {"cupy": ()}))}
    assert ("cuda", "runtime", "getDeviceCount") in taken
    assert [name for name in taken if not has(cupy, name) and not has(cupy_namespace, name)] == []


def test_the_walk_finds_names_through_variables_calls_and_submodules():
    lines = [
        "xp = namespace(a)",
        "xp.sum(a)",
        "fft = namespace(a).fft",
        "fft.fftshift(a)",
        "namespace(b).linalg.svd(b)",
    ]
    found = {name for name, _ in names_in(ast.parse("\n".join(lines)))}
    assert {("sum",), ("fft", "fftshift"), ("linalg", "svd")} <= found


def test_the_numeric_code_takes_its_functions_from_the_namespace():
    found = {name for path in files() for name, _ in names_in(ast.parse(path.read_text(encoding="utf-8")))}
    assert len(found) > 30
    assert {("sum",), ("abs",), ("fft", "fftn")} <= found
