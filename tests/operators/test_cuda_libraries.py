"""Where the CUDA libraries of cuFINUFFT are looked for; that they work only a GPU tells."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from mrsi_gadgets.errors import MissingPackageError
from mrsi_gadgets.operators import cuda_libraries
from mrsi_gadgets.operators.cuda_libraries import NEEDED, import_cufinufft, installed


def test_libraries_are_found_in_the_packages_that_pip_installs(tmp_path):
    file = tmp_path / "cufft" / "lib" / "libcufft.so.11"
    file.parent.mkdir(parents=True)
    file.touch()
    (tmp_path / "cu13" / "lib").mkdir(parents=True)
    (tmp_path / "cu13" / "lib" / "libcufft.so.12").touch()
    assert installed("libcufft.so.11", [tmp_path, tmp_path / "not there"]) == [file]
    assert installed("libcudart.so.12", [tmp_path]) == []


def test_what_is_missing_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cufinufft", None)  # importing it fails
    monkeypatch.setattr(cuda_libraries, "_loaded", lambda name: name == NEEDED[0])
    with pytest.raises(MissingPackageError, match=r"cufinufft and the libraries libcufft\.so\.11 of CUDA 12; install"):
        import_cufinufft()
    monkeypatch.setattr(cuda_libraries, "_loaded", lambda name: True)
    with pytest.raises(MissingPackageError, match="need the package cufinufft; install the extra cuda12 or cuda13"):
        import_cufinufft()


def test_without_packages_of_nvidia_nothing_is_found(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not cuda_libraries._loaded("libnobody_has_this.so.1")
