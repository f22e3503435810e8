"""Every setting of a node can come from a flag, the environment or a file, and what makes no sense is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from dcache.cli.settings import NodeSettings, flag, load, size
from dcache.wire import DEFAULT_PORT

JOINED = ("--join", "h:1")

# name: (a text, what it means, another text, the TOML value of the other)
EVERY: dict[str, tuple[str, Any, str, str]] = {
    "host": ("127.0.0.2", "127.0.0.2", "localhost", '"localhost"'),
    "port": ("7401", 7401, "0", "0"),
    "advertise": ("h:7401", "h:7401", "i:7402", '"i:7402"'),
    "name": ("n1", "n1", "n2", '"n2"'),
    "join": ("h:1", ("h:1",), "i:2", '["i:2"]'),
    "expect": ("3", 3, "5", "5"),
    "leave": ("true", True, "true", "true"),
    "replicas": ("2", 2, "5", "5"),
    "vnodes": ("10", 10, "20", "20"),
    "ring_seed": ("7", 7, "8", "8"),
    "zone": ("east", "east", "west", '"west"'),
    "weight": ("0.5", 0.5, "2", "2"),
    "memory_limit": ("64MiB", 64 << 20, "1GiB", '"1GiB"'),
    "max_entries": ("1000", 1000, "2000", "2000"),
    "max_value": ("2MiB", 2 << 20, "4096", "4096"),
    "max_connections": ("10", 10, "20", "20"),
    "idle_timeout": ("60", 60.0, "0.5", "0.5"),
    "clock_skew": ("5", 5.0, "1.5", "1.5"),
    "probe_interval": ("5", 5.0, "0.2", "0.2"),
    "start_over_after": ("2", 2.0, "60", "60"),
    "repair_interval": ("30", 30.0, "600.5", "600.5"),
    "repair_rate": ("1MiB", 1 << 20, "64MiB", '"64MiB"'),
    "log_level": ("debug", "debug", "error", '"error"'),
    "log_format": ("json", "json", "text", '"text"'),
}
FIELDS = {field.name: field for field in attrs.fields(NodeSettings)}
each = pytest.mark.parametrize("name", list(FIELDS))
File = Callable[[str], str]


@pytest.fixture
def file(tmp_path: Path) -> File:
    def write(text: str) -> str:
        path = tmp_path / "node.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def settings(*argv: str, env: Mapping[str, str] | None = None) -> NodeSettings:
    return load(argv, env or {})


def beside(name: str) -> tuple[str, ...]:
    """What else must be said for the setting to make sense."""
    return JOINED if name == "expect" else ()


def refused(capsys: pytest.CaptureFixture[str], *argv: str, env: Mapping[str, str] | None = None) -> str:
    """The message with which it exits with status 2."""
    with pytest.raises(SystemExit) as caught:
        settings(*argv, env=env)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()[-1]


def test_every_setting_is_tested_here() -> None:
    assert set(EVERY) == set(FIELDS)


@each
def test_a_setting_can_be_a_flag(name: str) -> None:
    text, meaning, *_ = EVERY[name]
    assert getattr(settings(flag(name), text, *beside(name)), name) == meaning


@each
def test_a_setting_can_be_in_the_environment(name: str) -> None:
    text, meaning, *_ = EVERY[name]
    found = settings(*beside(name), env={f"DCACHE_NODE_{name.upper()}": text})
    assert getattr(found, name) == meaning


@each
def test_a_setting_can_be_in_a_file(name: str, file: File) -> None:
    _, _, other, toml = EVERY[name]
    path = file(f"{name.replace('_', '-')} = {toml}\n")
    assert settings("--config", path, *beside(name)) == settings(flag(name), other, *beside(name))
    assert settings(*beside(name), env={"DCACHE_NODE_CONFIG": path}) == settings(flag(name), other, *beside(name))


@each
def test_a_flag_wins_over_the_environment_and_that_over_the_file_and_that_over_the_default(
    name: str, file: File
) -> None:
    text, meaning, other, toml = EVERY[name]
    config = ("--config", file(f"{name.replace('_', '-')} = {toml}\n"), *beside(name))
    variable = f"DCACHE_NODE_{name.upper()}"
    assert getattr(settings(*config, flag(name), text, env={variable: other}), name) == meaning
    assert getattr(settings(*config, env={variable: text}), name) == meaning
    if name != "log_format":  # whose two values include the default
        assert getattr(settings(*config), name) != FIELDS[name].default
    assert getattr(settings(), name) == FIELDS[name].default


def test_the_defaults_listen_on_loopback_only_and_make_a_cluster_of_one() -> None:
    found = settings()
    assert (found.host, found.port, found.expect, found.replicas) == ("127.0.0.1", DEFAULT_PORT, 1, 3)
    assert (found.memory_limit, found.max_entries, found.max_value) == (256 << 20, None, 1 << 20)


def test_a_switch_needs_no_value_and_can_be_turned_off_again(file: File) -> None:
    config = file("leave = true")
    assert settings("--leave").leave is True
    assert settings("--leave", "--expect", "1").leave is True
    assert settings("--config", config, env={"DCACHE_NODE_LEAVE": "False"}).leave is False
    assert settings("--config", config, "--leave=false").leave is False


def test_several_addresses_to_join(file: File) -> None:
    wanted = ("h:1", f"i:{DEFAULT_PORT}", "[::1]:3")
    assert settings("--join", "h:1", "--join", "i", "--join", "[::1]:3").join == wanted
    assert settings(env={"DCACHE_NODE_JOIN": "h:1, i,[::1]:3"}).join == wanted
    assert settings("--config", file('join = ["h:1", "i", "[::1]:3"]')).join == wanted
    assert settings("--config", file('join = "h:1"')).join == ("h:1",)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("1", 1),
        ("4096", 4096),
        ("1b", 1),
        ("1k", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("256MiB", 256 << 20),
        (" 256 mib ", 256 << 20),
        ("3M", 3 * 10**6),
        ("1.5GiB", 3 << 29),
        ("2GB", 2 * 10**9),
        ("1TiB", 1 << 40),
        ("1tb", 10**12),
    ],
)
def test_sizes(text: str, bytes_: int) -> None:
    assert size(text) == bytes_


@pytest.mark.parametrize("text", ["", "nonsense", "-1", "1 PiB", "MiB", "1e9", "0", "0.5", "1,5GiB", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|less than one byte"):
        size(text)


WRONG = {
    "port": ["-1", "65536", "http"],
    "advertise": ["", ":7400", "h:x"],
    "join": ["h:65536", ":1"],
    "expect": ["0", "-1", "three"],
    "leave": ["yes", "1", ""],
    "replicas": ["0", "2.5"],
    "vnodes": ["0", "10001", "many"],
    "ring_seed": ["-1", "4294967296"],
    "weight": ["0", "-1", "nan", "inf", "1001", "heavy"],
    "memory_limit": ["nonsense", "0"],
    "max_entries": ["0"],
    "max_value": ["0", "1X"],
    "max_connections": ["0"],
    "idle_timeout": ["0", "-1", "nan", "inf", "soon"],
    "clock_skew": ["0", "inf"],
    "probe_interval": ["0", "often"],
    "start_over_after": ["-1", "never"],
    "repair_interval": ["0", "inf"],
    "repair_rate": ["0", "fast"],
    "log_level": ["loud", "INFO"],
    "log_format": ["xml"],
}
wrong = pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])


@wrong
def test_what_makes_no_sense_exits_with_2_and_names_the_flag(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"error: {flag(name)}: " in refused(capsys, f"{flag(name)}={text}")


@wrong
def test_what_makes_no_sense_exits_with_2_and_names_the_variable(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = f"DCACHE_NODE_{name.upper()}"
    assert f"error: {variable}: " in refused(capsys, env={variable: text})


@wrong
def test_what_makes_no_sense_exits_with_2_and_names_the_line_of_the_file(
    name: str, text: str, capsys: pytest.CaptureFixture[str], file: File
) -> None:
    written = name.replace("_", "-")
    assert f"error: {written} in the file: " in refused(capsys, "--config", file(f'{written} = "{text}"'))


def test_a_weight_that_is_none_is_not_called_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert "a weight is more than 0 and at most 1000" in refused(capsys, "--weight", "0")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "*", ""])
def test_a_wildcard_host_needs_an_address_that_others_can_reach(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--advertise" in refused(capsys, "--host", host)
    assert settings("--host", host, "--advertise", "cache1").advertise == f"cache1:{DEFAULT_PORT}"


def test_to_expect_others_needs_their_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--join" in refused(capsys, "--expect", "3")
    assert settings("--expect", "1").expect == 1


@pytest.mark.parametrize("line", ["replica = 3", "memory_limit = 5", "config = 'x'"])
def test_unknown_names_in_the_file_are_named(line: str, capsys: pytest.CaptureFixture[str], file: File) -> None:
    """A misspelt setting must not silently be the default."""
    path = file(line)
    assert refused(capsys, "--config", path).endswith(f"{path}: no such settings: {line.split(maxsplit=1)[0]}")


@pytest.mark.parametrize(
    ("content", "says"), [(b"replicas = ", "not TOML"), (b"\xff\xfe", "not UTF-8"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read_is_named(
    content: bytes | None, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "node.toml"
    if content is not None:
        path.write_bytes(content)
    message = refused(capsys, "--config", str(path))
    assert says in message
    assert str(path) in message


def test_flags_are_written_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    """A shortened flag could come to mean another one."""
    assert "--rep" in refused(capsys, "--rep", "2")


def test_help_names_every_setting_and_how_else_to_give_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        settings("--help")
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert [name for name in FIELDS if flag(name) not in told] == []
    assert "DCACHE_NODE_MEMORY_LIMIT" in told
    assert "memory-limit" in told
