"""Programs log readable lines, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from dcache.cli.logs import JsonFormatter, configure


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """Put back what `configure` changes for the whole process."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers[:] = []
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def record(message: str, *args: object, exc_info: object = None) -> logging.LogRecord:
    made = logging.LogRecord("dcache.node", logging.WARNING, __file__, 1, message, args, exc_info)  # type: ignore[arg-type]
    made.created, made.msecs = 1_700_000_000.25, 250.0
    return made


def test_a_json_line_says_when_how_grave_who_and_what() -> None:
    assert json.loads(JsonFormatter().format(record("closing %s", "it"))) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "dcache.node",
        "message": "closing it",
    }


def test_a_message_of_several_lines_is_one_json_line() -> None:
    line = JsonFormatter().format(record('first\nsecond "quoted" ünd mehr'))
    assert "\n" not in line
    assert json.loads(line)["message"] == 'first\nsecond "quoted" ünd mehr'


def test_a_traceback_is_part_of_its_json_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        line = JsonFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line
    assert json.loads(line)["traceback"].endswith("ValueError: broken")


def test_json_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    logging.getLogger("dcache.node").info("started")
    said = capsys.readouterr()
    assert said.out == ""
    assert json.loads(said.err)["message"] == "started"


def test_text_lines_are_for_reading(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")
    logging.getLogger("dcache.node").warning("closing %d", 3)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING dcache\.node: closing 3\n", capsys.readouterr().err
    )


@pytest.mark.parametrize(("level", "logged"), [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")])
def test_only_what_is_grave_enough_is_logged(level: str, logged: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(level, "text")
    log = logging.getLogger("dcache.node")
    for say, text in ((log.debug, "d"), (log.info, "i"), (log.warning, "w"), (log.error, "e")):
        say("said %s", text)
    assert "".join(re.findall(r"said (\w)", capsys.readouterr().err)) == logged


def test_to_configure_again_replaces_what_was_configured(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")
    configure("info", "json")
    logging.getLogger().error("once")
    assert len(capsys.readouterr().err.splitlines()) == 1
