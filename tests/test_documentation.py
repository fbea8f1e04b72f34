"""What the documents name exists, so that a page cannot outlive the code it describes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mrsi_gadgets.phantom.presets import PRESETS

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


def test_the_page_of_the_numerical_brain_lists_every_preset_with_its_numbers():
    text = (ROOT / "docs" / "reference" / "numerical-brain.md").read_text(encoding="utf-8")
    rows = {row[0].strip("`"): row[1:] for row in re.findall(r"^\| (.*) \|$", text, re.M) for row in [row.split(" | ")]}
    for p in PRESETS.values():
        assert rows[p.name] == [
            f"{p.matrix[0]} x {p.matrix[1]}", f"{p.field_strength_t:g} T", f"{p.transmit_frequency_hz / 1e6:.2f} MHz",
            f"{p.n_times}", f"{p.dwell_s * 1e6:.1f} us", f"{p.n_coils}", f"{p.snr:g}",
        ]  # fmt: skip
        assert (p.repetition_time_s, p.flip_angle_deg, p.acquisition_delay_s) == (0.3, 35.0, 1.3e-3)
