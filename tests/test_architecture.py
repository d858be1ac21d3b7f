"""The arrows between the rooms: which part of the project may import which."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("trol_jax", "launch", "convert", "configs", "tests")

# Room -> what it may import of this project. Rooms inside trol_jax that are not listed follow the rule of trol_jax.
ARROWS = {
    "trol_jax": ("trol_jax",),
    "trol_jax/ops": ("trol_jax.ops",),
    "trol_jax/models": ("trol_jax.models", "trol_jax.ops", "trol_jax.errors"),
    "configs": ("configs",),
    "convert": ("convert", "trol_jax"),
    "launch": ("launch", "trol_jax", "convert", "configs"),
}


def imports(node: ast.AST, package: str, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Yields (dotted name, whether it is inside a function) for each import; `package` resolves the relative ones."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - child.level] if child.level else []
            base = ".".join([*above, *([child.module] if child.module else [])])
            yield from ((f"{base}.{alias.name}", lazy) for alias in child.names)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(child, package, lazy or inside)


def imports_of(room: str) -> list[tuple[str, str, bool]]:
    """(file, dotted name, lazy) for every import in a room and below."""
    found = []
    for path in sorted((ROOT / room).rglob("*.py")):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(str(path.relative_to(ROOT)), name, lazy) for name, lazy in imports(tree, package)]
    return found


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_parser_sees_relative_and_lazy_imports():
    source = "import a.b\nfrom . import c\nfrom ..ops import d\ndef f():\n    from torch import e"
    expected = [("a.b", False), ("x.models.c", False), ("x.ops.d", False), ("torch.e", True)]
    assert list(imports(ast.parse(source), "x.models")) == expected


@pytest.mark.parametrize("room", ARROWS)
def test_rooms_import_only_along_the_arrows(room):
    wrong = [
        (file, name) for file, name, _ in imports_of(room) if within(name, OURS) and not within(name, ARROWS[room])
    ]
    assert not wrong, f"{room}/ may import {ARROWS[room]} of this project"


def test_ops_do_not_know_flax():
    assert not [(file, name) for file, name, _ in imports_of("trol_jax/ops") if within(name, ("flax",))]


def test_torch_is_lazy_in_convert_and_absent_elsewhere():
    eager = [file for file, name, lazy in imports_of("convert") if within(name, ("torch",)) and not lazy]
    elsewhere = [
        file
        for room in ("trol_jax", "launch", "configs")
        for file, name, _ in imports_of(room)
        if within(name, ("torch",))
    ]
    assert not eager + elsewhere


def test_what_serves_needs_stays_in_its_room():
    extras = ("fastapi", "starlette", "pydantic", "pydantic_core", "uvicorn", "prometheus_client", "gradio")
    found = [each for room in ("trol_jax", "launch", "configs", "convert") for each in imports_of(room)]
    eager = [(file, name) for file, name, lazy in found if within(name, extras) and not (lazy and "launch" in file)]
    assert not [each for each in eager if not each[0].startswith("trol_jax/serve/")]
    rooms = [file for file, name, _ in found if within(name, ("trol_jax.serve",))]
    assert all(file.startswith(("trol_jax/serve/", "launch/")) for file in rooms)


@pytest.mark.parametrize("room", ["trol_jax", "launch", "configs", "convert"])
def test_nothing_imports_tensorflow(room):
    assert not [file for file, name, _ in imports_of(room) if within(name, ("tensorflow",))]


def test_configs_import_only_ml_collections():
    allowed = ("configs", "ml_collections", *sys.stdlib_module_names)
    assert not [(file, name) for file, name, _ in imports_of("configs") if not within(name, allowed)]


def test_package_and_configs_load_without_jax():
    configs = [f"configs.{path.stem}" for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "__init__"]
    code = f"import sys, {', '.join(['trol_jax', *configs])}; print({{'jax', 'flax'}} & set(sys.modules))"
    assert run_python(code).strip() == "set()"
