from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from mrsi_gadgets.cli import main
from small_scan import SmallScan, small_scan


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    """A command reads these variables; the tests choose them themselves."""
    monkeypatch.delenv("MRSI_THREADS", raising=False)
    monkeypatch.delenv("MRSI_CONFIG_DIR", raising=False)


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing costs more than all the rest; one test sees that it is done."""
    monkeypatch.setattr("mrsi_gadgets.output.folder.contact_sheet", lambda results, path: path.touch())


@pytest.fixture
def scan() -> SmallScan:
    return small_scan()


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory) -> Path:
    return small_scan().write(tmp_path_factory.mktemp("scan") / "scan.h5")


@pytest.fixture
def run(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(run, tmp_path):
    """Run a command that must fail: one sentence on stderr, exit code 1, no file more or less than before."""

    def refused(*arguments: object) -> str:
        before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith(f"mrsi {arguments[0]}: ")
        assert err.count("\n") == 1, err
        assert "internal error" not in err
        assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before
        return err

    return refused


@pytest.fixture
def on_stdin(monkeypatch):
    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put
