"""What can be checked of the images without a container engine: the files name what is there."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mrsi_gadgets.cli import _parser
from mrsi_gadgets.gadgets.openrecon import LABEL_NAME

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()


def instructions(kind):
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.split(None, 1)[:1] == [kind]]


def test_what_is_copied_is_there_and_in_the_build_context():
    ignored = (ROOT / "docker/Dockerfile.dockerignore").read_text().splitlines()
    for line in instructions("COPY"):
        for source in shlex.split(line)[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored


def test_extras_that_are_installed_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = [re.search(r"/source\[(.*)\]", line) for line in instructions("RUN") if "pip install" in line]
    assert len(installed) == 2
    for found in installed:
        assert set(found[1].split(",")) <= set(extras)


@pytest.mark.parametrize("line", instructions("CMD"))
def test_the_command_is_one_of_ours(line):
    given = _parser().parse_args(json.loads(line))
    assert given.command == "serve"
    assert given.web_port == 9080
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["mrsi"]


def test_nobody_runs_as_root_and_health_is_asked():
    stages = DOCKERFILE.split("\nFROM ")[2:]
    assert len(stages) == 2
    for stage in stages:
        assert "\nUSER mrsi\n" in stage
        assert stage.index("USER mrsi") < stage.index("ENTRYPOINT")
        assert "/health" in stage


def test_versions_come_from_the_lock_file_also_for_what_builds():
    environment = instructions("ENV")[0]
    assert "PIP_CONSTRAINT=/source/constraints.txt" in environment
    locked = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = required["project"]["optional-dependencies"]
    used = {
        name
        for line in instructions("RUN")
        for group in re.findall(r"/source\[(.*)\]", line)
        for name in group.split(",")
    }
    assert used == {"dicom", "twix", "cuda12"}
    wanted = [*required["project"]["dependencies"], *required["build-system"]["requires"]]
    for name in [*wanted, *(one for extra in used for one in extras[extra])]:
        assert re.split(r"[<>=\[]", name)[0].replace("_", "-").lower() in {n.replace("_", "-") for n in locked}


def needed_by(requirement: Requirement, seen: set[str]) -> set[str]:
    """Names of all distributions that a requirement brings here, itself included."""
    name = canonicalize_name(requirement.name)
    asked = {f"{name}[{extra}]" for extra in requirement.extras or {""}}
    if asked <= seen:
        return seen
    seen |= asked | {name}
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return seen  # of the GPU's extra, which is not installed here
    for one in map(Requirement, lines):
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in requirement.extras or {""}):
            needed_by(one, seen)
    return seen


def test_what_those_bring_along_is_in_the_lock_file_too():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    locked = {canonicalize_name(line.partition("==")[0]) for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for extra in ("dicom", "twix", "cuda12") for one in project["optional-dependencies"][extra]]
    seen: set[str] = set()
    for one in [*project["dependencies"], *extras]:
        needed_by(Requirement(one), seen)
    found = {name for name in seen if "[" not in name}
    assert {"torch", "pydicom", "twixtools", "setuptools", "cuda-pathfinder"} <= found
    assert found <= locked


def test_compiled_kernels_are_kept_where_the_container_may_write():
    folder = dict(part.split("=", 1) for line in instructions("ENV") for part in shlex.split(line))["CUPY_CACHE_DIR"]
    assert folder.startswith(f"{instructions('VOLUME')[1]}/")


def test_the_label_is_the_one_that_a_scanner_looks_for():
    assert any(line.startswith(f'"{LABEL_NAME}"=') for line in instructions("LABEL"))
