"""What the documents say is so: their code runs, their commands exist, their tables agree with the program.

Conventions of the documents that this relies on:

* The Python blocks of one document are one program, run in order.  It meets a cluster of three nodes under the
  addresses cache1:7400, cache2:7400 and cache3:7400.
* A line that ends in `# -> VALUE` is an expression that equals VALUE.
* `<!-- not run: REASON -->` on the line before a block keeps it from being run; it must still be Python.
* Blocks marked `sh` hold commands, `toml` a file for `dcache-node --config`, `text` anything else.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

import dcache
import dcache.errors
from dcache import AsyncClient, Client, packing
from dcache.agent.agent import Agent, Terms
from dcache.agent.completing import Completing
from dcache.agent.detector import Detector
from dcache.agent.repair import Repair
from dcache.cli import sim
from dcache.cli.program import program
from dcache.cli.settings import NodeSettings, load
from dcache.client.cached import Cached
from dcache.membership import Member
from dcache.node.service import Identity, Service
from dcache.node.store import Store
from dcache.ops.listing import Pace
from dcache.testing import FaultProxy, LocalCluster
from dcache.wire import MESSAGES, Code, Limits, Status

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CHAPTERS = sorted([README, *ROOT.glob("docs/*.md")])
DOCUMENTS = sorted([*CHAPTERS, ROOT / "CHANGELOG.md", *ROOT.glob(".github/*.md")])
EXPECTED = (
    "architecture.md",
    "bench.md",
    "protocol.md",
    "consistency.md",
    "operations.md",
    "patterns.md",
    "performance.md",
    "api.md",
    "testing.md",
)

DEMO = "python3 -m venv .venv && .venv/bin/pip install -q '.[cli]' && .venv/bin/dcache demo"
CHECKS = "python3 -m venv .venv && .venv/bin/pip install -q nox==2026.10.20 && .venv/bin/nox"
OUTSIDE = {"python3", ".venv/bin/pip", ".venv/bin/nox"}
"""Programs that documents may mention and that are not ours."""

NOT_RUN = re.compile(r"<!-- not run: .+ -->")
SHOWN = re.compile(r"^(?P<indent>\s*)(?P<found>\S.*?)\s+# -> (?P<told>.+)$")
CLIENT_METHODS = [name for name in vars(Client) if not name.startswith("_") and callable(getattr(Client, name))]

PRELUDE = """\
def _is(found, told):
    assert found == told, f"the document says {told!r}, it is {found!r}"

import dcache
for client in (dcache.Client, dcache.AsyncClient):
    client.__init__.__kwdefaults__.update(timeout=10.0, connect_timeout=5.0)  # however busy this machine is
"""


@attrs.frozen
class Block:
    """A fenced block: its language, the number of its first line (from 0), its lines, whether it is to be run."""

    language: str
    start: int
    lines: list[str]
    run: bool


def blocks(document: Path) -> list[Block]:
    found, lines = [], document.read_text(encoding="utf-8").splitlines()
    opened = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        run = opened == 0 or not NOT_RUN.fullmatch(lines[opened - 1])
        found.append(Block(lines[opened][3:].strip(), opened + 1, lines[opened + 1 : number], run))
        opened = None
    assert opened is None, f"{document.name}: the block that begins in line {(opened or 0) + 1} has no end"
    return found


def blocks_of(language: str) -> list[Any]:
    """All blocks of one language, in all documents, as parameters of a test."""
    return [
        pytest.param(block, id=f"{document.name}:{block.start}")
        for document in DOCUMENTS
        if document.exists()
        for block in blocks(document)
        if block.language == language
    ]


def text_of(name: str, section: str | None = None) -> str:
    """A document of docs/, or the part of it under a heading of the second level."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    if section is None:
        return text
    (found,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert isinstance(found, str)
    return found


def cells(text: str) -> Iterator[list[str]]:
    """The rows of all tables, as lists of cells without backticks."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


def row_of(text: str, first: str) -> list[str]:
    """The one row that begins with this cell."""
    found = [row for row in cells(text) if row[0] == first]
    assert len(found) == 1, f"{len(found)} rows begin with {first!r}"
    return found[0]


def signature_of(function: Callable[..., Any], name: str) -> str:
    """As documents write it: names and defaults, no types."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]
    text = f"{name}{inspect.Signature(parameters)}"
    return text.replace("'", '"')


# -- the documents as such --------------------------------------------------------------------------------------------


def test_the_documents_are_there() -> None:
    missing = {"README.md", "CHANGELOG.md"} - {path.name for path in ROOT.glob("*.md")}
    missing |= set(EXPECTED) - {path.name for path in ROOT.glob("docs/*.md")}
    assert not missing


def slug(heading: str) -> str:
    """The anchor that a heading gets on the usual sites."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(document: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in document.read_text(encoding="utf-8").splitlines() if line[:1] == "#"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_repository_lead_somewhere(document: Path) -> None:
    """Every file that is linked to is there, and has the heading that is linked to."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        goal = (document.parent / path).resolve() if path else document
        assert goal.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(goal), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_modules_that_are_named_exist(document: Path) -> None:
    """What stands in backticks and looks like one of our files is one, relative to the root or to dcache/."""
    named = re.findall(r"`((?:[\w.]+/)*\w+\.py|(?:[\w.]+/)+)`", document.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists() and not (ROOT / "dcache" / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_says_what_it_is(document: Path) -> None:
    languages = {block.language for block in blocks(document)} if document.parent.name != ".github" else set[str]()
    assert languages <= {"python", "sh", "toml", "text"}


# -- code and commands ------------------------------------------------------------------------------------------------


RUNNABLE = [path for path in CHAPTERS if path.exists() and any(one.language == "python" for one in blocks(path))]


def program_of(document: Path, addresses: Collection[str]) -> str:
    """The document's Python as one program, in which each line has the number that it has in the document."""
    lines = [""] * len(document.read_text(encoding="utf-8").splitlines())
    lines[0] = f"exec({PRELUDE!r})"
    for block in blocks(document):
        if block.language == "python" and block.run:
            lines[block.start : block.start + len(block.lines)] = [SHOWN.sub(_checked, line) for line in block.lines]
    text = "\n".join(lines)
    for number, address in enumerate(addresses, 1):
        text = text.replace(f"cache{number}:7400", address)
    return text


def _checked(line: re.Match[str]) -> str:
    return f"{line['indent']}_is({line['found']}, {line['told']})"


@pytest.mark.parametrize("document", RUNNABLE, ids=lambda path: path.name)
def test_the_code_of_a_document_runs_and_gives_what_it_says(document: Path, tmp_path: Path) -> None:
    script = tmp_path / f"{document.stem}.py"
    with LocalCluster(nodes=3) as cluster:
        script.write_text(program_of(document, cluster.addresses), encoding="utf-8")
        ended = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert ended.returncode == 0, f"line numbers are those of {document.name}\n{ended.stderr}"


@pytest.mark.parametrize("block", blocks_of("python"))
def test_code_that_is_not_run_is_code_all_the_same(block: Block) -> None:
    ast.parse("\n".join(block.lines))


def commands(block: Block) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The variables and the words of every command in a block of shell."""
    for line in "\n".join(block.lines).replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\||&(?:\s|$)|;", line):
            words = shlex.split(command, comments=True)
            assigned = [word for word in words if re.match(r"[A-Z_]+=", word)]
            if words[len(assigned) :]:
                yield dict(word.split("=", 1) for word in assigned), words[len(assigned) :]


def check_command(variables: Mapping[str, str], name: str, arguments: list[str]) -> None:
    if name == "dcache-node":
        load(arguments, variables)
    elif name == "dcache-sim":
        sim.arguments(arguments)
    elif name == "dcache":
        ended = CliRunner().invoke(program, [*arguments, "--help"], env=dict(variables))
        assert ended.exit_code == 0, ended.output
    else:
        pytest.fail(f"no program of ours: {name}")


@pytest.mark.parametrize("block", blocks_of("sh"))
def test_commands_that_are_shown_exist(block: Block) -> None:
    """Every command line of ours can be read by the program that it is for."""
    for variables, (name, *arguments) in commands(block):
        if name not in OUTSIDE:
            check_command(variables, name.removeprefix(".venv/bin/"), arguments)


@pytest.mark.parametrize("block", blocks_of("toml"))
def test_configuration_files_that_are_shown_can_be_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("\n".join(block.lines), encoding="utf-8")
    assert load(["--config", str(file)], {}) != load([], {})


@pytest.mark.parametrize("line", [DEMO, CHECKS])
def test_the_readme_has_the_commands_for_a_fresh_machine(line: str) -> None:
    assert line in README.read_text(encoding="utf-8").splitlines()


def test_the_readme_shows_how_to_run_three_nodes() -> None:
    """Three command lines, which describe three nodes that find each other."""
    found = [
        load(words[1:], variables)
        for block in blocks(README)
        if block.language == "sh"
        for variables, words in commands(block)
        if words[0] == "dcache-node"
    ]
    three = found[:3]
    assert [node.expect for node in three] == [3, 3, 3]
    assert len({node.port for node in three}) == 3
    assert all({f"127.0.0.1:{other.port}" for other in three if other is not node} <= {*node.join} for node in three)


# -- api.md -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dcache.__all__)
def test_every_public_name_is_told_of(name: str) -> None:
    assert re.search(rf"`{name}\b", text_of("api.md"))


@pytest.mark.parametrize("name", CLIENT_METHODS)
def test_every_method_of_a_client_is_told_of_with_its_signature(name: str) -> None:
    assert f"`{signature_of(getattr(Client, name), name)}`" in text_of("api.md")


@pytest.mark.parametrize("cls", [Cached, LocalCluster, FaultProxy])
def test_every_method_of_the_other_classes_is_told_of_with_its_signature(cls: type) -> None:
    for name, member in inspect.getmembers(cls, inspect.isfunction):
        if not name.startswith("_"):
            assert f"`{signature_of(member, name)}`" in text_of("api.md")


@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_every_setting_of_a_client_is_told_of_with_its_default(cls: type) -> None:
    for parameter in list(inspect.signature(cls).parameters.values())[1:]:
        _, default, *_ = row_of(text_of("api.md", "Clients"), parameter.name)
        assert ast.literal_eval(default) == parameter.default


def test_the_decorator_is_told_of_with_its_signature_and_arguments() -> None:
    text = text_of("api.md", "The decorator")
    assert f"`{signature_of(dcache.cached, 'cached')}`" in text
    for parameter in list(inspect.signature(dcache.cached).parameters.values())[1:]:
        assert ast.literal_eval(row_of(text, parameter.name)[1]) == parameter.default


def test_every_error_is_told_of_with_its_bases() -> None:
    for name, error in inspect.getmembers(dcache.errors, inspect.isclass):
        if error.__module__ == "dcache.errors":
            assert row_of(text_of("api.md", "Errors"), name)[1].replace("`", "") == ", ".join(
                base.__name__ for base in error.__bases__
            )


@pytest.mark.parametrize("setting", attrs.fields(NodeSettings), ids=lambda setting: setting.name)
def test_every_setting_of_a_node_is_told_of_with_its_default(setting: attrs.Attribute[Any]) -> None:
    default = row_of(text_of("api.md", "dcache-node"), "--" + setting.name.replace("_", "-"))[1]
    if setting.default in ("", None, ()):
        assert default == "none"
    else:
        assert setting.metadata["read"](default) == setting.default


def test_every_command_of_dcache_is_told_of_with_its_options() -> None:
    text = text_of("api.md")
    for name, command in program.commands.items():
        assert re.search(rf"`dcache {name}\b", text), name
        for parameter in (*command.params, *program.params):
            assert all(f"`{option}" in text for option in parameter.opts if option.startswith("--")), parameter.opts


# -- testing.md -------------------------------------------------------------------------------------------------------


def test_every_option_of_dcache_sim_is_told_of_and_no_other() -> None:
    options = {option for action in sim.parser()._actions for option in action.option_strings}
    told = {
        row[0] for row in cells(text_of("testing.md", "Simulating")) if row[0].startswith("--") and row[0].strip("-")
    }
    assert told == options - {"-h", "--help"}
    assert row_of(text_of("testing.md", "Simulating"), "--seeds")[1] == str(sim.SEEDS)


# -- protocol.md ------------------------------------------------------------------------------------------------------


def methods() -> dict[str, Callable[..., Any]]:
    """All that a node answers to."""
    service = Service(Store(1, lambda key: 0, 1), Identity("n", "b"), lambda: 0, lambda: 0)
    agent = Agent(Member("n", "h:1"), Terms(), lambda table: None, lambda: None)
    detector = Detector(agent, 1.0, lambda: 0, lambda: 0, lambda: 0.0)
    completing = Completing(agent, service, lambda: 0, lambda: 0.0, Pace(1.0))
    repair = Repair(agent, service, lambda: 0, lambda: 0.0, Pace(1.0))
    parts = (agent, detector, completing, repair)
    return service.methods | {name: method for part in parts for name, method in part.methods().items()}


@pytest.mark.parametrize("name", methods())
def test_every_method_of_a_node_is_told_of_with_its_parameters(name: str) -> None:
    row_of(text_of("protocol.md"), signature_of(methods()[name], name))


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_every_code_is_told_of_with_its_number_and_message(code: Code) -> None:
    assert [str(int(code)), code.name, MESSAGES[code]] in [row[:3] for row in cells(text_of("protocol.md"))]


@pytest.mark.parametrize("status", Status, ids=lambda status: status.name)
def test_every_status_is_told_of_with_its_number(status: Status) -> None:
    assert [str(int(status)), status.name] in [row[:2] for row in cells(text_of("protocol.md"))]


@pytest.mark.parametrize("limit", attrs.fields(Limits), ids=lambda limit: limit.name)
def test_every_limit_is_told_of_with_its_default(limit: attrs.Attribute[Any]) -> None:
    assert row_of(text_of("protocol.md"), limit.name)[1] == str(limit.default)


def test_every_extension_type_is_told_of() -> None:
    """The list in the module that packs values and the table in the document name the same types."""
    listed = re.findall(r"^(-?\d)\s+(\w+)\s{2,}", packing.__doc__ or "", flags=re.MULTILINE)
    assert len(listed) == 9
    told = [row[:2] for row in cells(text_of("protocol.md"))]
    assert [entry for entry in listed if list(entry) not in told] == []
