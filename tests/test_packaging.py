"""What is installed: recipes, sequence descriptions and the command, from a checkout and from a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import mrsi_gadgets
from mrsi_gadgets.gadgets.composition import find_recipe, recipe_folders, recipe_names

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"fourier", "low_rank", "subspace"}
LOOK = """
import mrsi_gadgets
from mrsi_gadgets.gadgets.composition import find_recipe, recipe_names
from mrsi_gadgets.io.sequence import find_sequence, shipped_descriptions
from mrsi_gadgets.mrd.adapters import shipped_adapters
print(mrsi_gadgets.__file__)
print(*(name for name in recipe_names() if find_recipe(name).gadgets))
print(*(find_sequence(name, "").name for name in shipped_descriptions("twix")))
print(*(adapter.name for adapter in shipped_adapters()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def unpacked(wheel) -> Path:
    """The wheel's files as pip would lay them out, without the command."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def shipped(folder: str, ending: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob(f"*.{ending}")}


def test_the_recipes_of_the_checkout_are_found(monkeypatch):
    monkeypatch.delenv("MRSI_CONFIG_DIR", raising=False)
    assert shipped("config", "xml") == set(recipe_names()) >= RECIPES
    assert recipe_folders() == [ROOT / "config"]
    for name in recipe_names():
        assert find_recipe(name).name == name


def test_a_wheel_holds_the_recipes_the_sequences_and_the_type_marker_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"mrsi_gadgets/config/{name}.xml" for name in RECIPES} <= names
    sequences = {path.relative_to(ROOT / "config") for path in (ROOT / "config").rglob("*.toml")}
    assert {f"mrsi_gadgets/config/{path.as_posix()}" for path in sequences} <= names
    assert "mrsi_gadgets/py.typed" in names
    modules = {path.relative_to(ROOT / "gadgets").as_posix() for path in (ROOT / "gadgets").rglob("*.py")}
    assert modules <= names
    page = {path.relative_to(ROOT / "gadgets").as_posix() for path in (ROOT / "gadgets").rglob("report_page/*")}
    assert len(page) > 5
    assert page <= names
    assert {name.partition("/")[0] for name in names} == {
        "mrsi_gadgets", f"mrsi_gadgets-{mrsi_gadgets.__version__}.dist-info",
    }  # fmt: skip


def test_an_installed_wheel_finds_its_own_recipes_and_sequences(unpacked, tmp_path):
    names = shipped("config/sequences", "toml")
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    environment.pop("MRSI_CONFIG_DIR", None)
    looked = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert looked.returncode == 0, looked.stderr
    module, recipes, raw_files, streams = looked.stdout.splitlines()
    assert Path(module) == unpacked / "mrsi_gadgets" / "__init__.py"
    assert set(recipes.split()) == shipped("config", "xml")
    assert set(raw_files.split()) | set(streams.split()) == names
    assert raw_files
    assert streams


def test_the_wheel_says_what_it_is_and_what_it_needs(unpacked):
    (info,) = unpacked.glob("*.dist-info")
    metadata = Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
    assert metadata["Name"] == "mrsi-gadgets"
    assert metadata["Version"] == mrsi_gadgets.__version__
    assert metadata["License-Expression"] == "MIT"
    assert {"phantom", "twix", "cuda12", "cuda13", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert "mrsi = mrsi_gadgets.cli:main" in (info / "entry_points.txt").read_text(encoding="utf-8")
