"""What the documents name exists, so that a page cannot outlive the code it describes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gadgets" / "mrsi_gadgets"
STEP = re.compile(r"`([a-z_]+/[a-z_]+\.py)`((?:,?\s+`[A-Za-z_.]+`(?!\s*/))+)")


def steps() -> list[tuple[str, str]]:
    text = (ROOT / "docs" / "follow-one-readout.md").read_text(encoding="utf-8")
    found = []
    for path, names in STEP.findall(text):
        found += [(path, name) for name in re.findall(r"`([A-Za-z_.]+)`", names) if "/" not in name]
    return found


def test_the_walk_names_enough_places_to_be_one():
    assert len({path for path, _ in steps()}) >= 15


@pytest.mark.parametrize(("path", "name"), steps())
def test_every_step_of_the_walk_names_a_function_that_is_there(path, name):
    tree: ast.AST = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    for part in name.split("."):
        tree = next(
            node for node in ast.iter_child_nodes(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
        )  # fmt: skip


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
