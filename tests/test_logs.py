"""What the log says, and where."""

from __future__ import annotations

import json
import logging

from mrsi_gadgets.errors import LONGEST_SENTENCE, DataError
from mrsi_gadgets.logs import set_up_logging


def test_a_json_log_is_one_object_a_line_whatever_the_message_holds(capsys):
    set_up_logging("INFO", "json")
    log = logging.getLogger("mrsi.test")
    log.debug("too small to be said")
    log.info("two\nlines of %s", '"quotes"', extra={"session": "7"})
    try:
        raise ValueError("of all things")
    except ValueError:
        log.exception("failed")
    out, err = capsys.readouterr()
    assert out == ""
    first, second = (json.loads(line) for line in err.splitlines())
    assert (first["message"], first["level"], first["session"]) == ('two\nlines of "quotes"', "INFO", "7")
    assert first["time"].endswith("+00:00")
    assert "ValueError: of all things" in second["traceback"]


def test_a_text_log_names_level_and_place(capsys):
    set_up_logging("WARNING", "text")
    logging.getLogger("mrsi.test").info("not said")
    logging.getLogger("mrsi.test").warning("mind %s", "this")
    (line,) = capsys.readouterr().err.splitlines()
    assert "WARNING mrsi.test[" in line
    assert line.endswith("] mind this")


def test_nobody_forges_a_line_of_a_text_log(capsys):
    set_up_logging("INFO", "text")
    forged = "06:00:00 ERROR   mrsi.server[1] session 9 failed"
    log = logging.getLogger("mrsi.test")
    log.info("a name: %s", f"DOE\n{forged}\x1b[2J\r\u2028")
    try:
        raise ValueError(f"of\n{forged}")
    except ValueError:
        log.exception("failed")
    first, second, *trace = capsys.readouterr().err.splitlines()
    assert first.endswith(f"a name: DOE\\n{forged}\\x1b[2J\\r\\u2028")
    assert second.endswith("] failed")
    assert f"    {forged}" in trace
    assert all(line.startswith("    ") for line in trace)


def test_a_sentence_that_quotes_megabytes_is_cut_in_its_middle():
    sentence = str(DataError("x is '" + "1" * 3_000_000 + "', which is not a number; correct it"))
    assert len(sentence) < 1.1 * LONGEST_SENTENCE
    assert sentence.startswith("x is '1")
    assert sentence.endswith("correct it")
