"""The project's checks: `nox` runs them all, `nox -s NAME` one of them, `nox -l` lists them.

Each session installs from pyproject.toml alone: the tools, pinned, from the `dev` extra, the supported Pythons from
the classifiers, the lowest dependencies from their lower bounds.  Venvs are made by virtualenv and filled by pip, not
by uv: pip reads the index and certificate settings that a machine already has, and uv would save seconds only.  Two
tests run at a time, of those with real processes too, which mostly wait; only those that measure time run alone.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import secrets
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.sessions = ["lint", "types", "tests", "compat", "build", "lowest"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False  # a Python that is missing shows as a skipped session
nox.options.download_python = "never"

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
IN_MEMORY = ("tests/unit", "tests/simulation")
ELSEWHERE = ("-n", "2", "--hypothesis-profile=few", "-m", "not cluster and not timing", *IN_MEMORY)
"""What is run on every Python, once it was run with all examples on one."""

DECIDING = ("ops_*", "ring", "record", "membership", "store*", "comp*", "listing", "verify")
"""The unit tests of the files that decide and do no I/O, which coverage is measured of (see pyproject.toml): what those
do must be reached branch by branch, by few examples, for the tracer is slow."""

TALLY = Path(tempfile.gettempdir()) / f"dcache-tests-{os.getpid()}.jsonl"
"""One line of counts per pytest run, written by tests/conftest.py."""


def let_pyenv_show(versions: list[str]) -> None:
    """Let nox find the Pythons that pyenv has installed, not only the active one.

    For all others pyenv's shims stand on the path but do not start.
    """
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    wanted = [version.split(".") for version in versions]
    found = sorted(path.name for path in root.glob("versions/*") if path.name.split(".")[:2] in wanted)
    if found:
        os.environ.setdefault("PYENV_ROOT", str(root))
        os.environ.setdefault("PYENV_VERSION", ":".join(found))


let_pyenv_show(PYTHONS)


@atexit.register
def print_tally() -> None:
    """Print the number of tests of all runs, after nox's own summary, so that it is the last line."""
    if not TALLY.exists():
        return
    runs = [json.loads(line) for line in TALLY.read_text(encoding="utf-8").splitlines()]
    TALLY.unlink()
    sys.stderr.flush()
    print(", ".join(f"{sum(run[what] for run in runs)} {what}" for what in ("passed", "failed", "skipped")), flush=True)


def pinned(*names: str) -> list[str]:
    """The `dev` extra's requirements of these names."""
    extra = PROJECT["project"]["optional-dependencies"]["dev"]
    by_name = {re.split(r"[=\[;<>! ]", line, maxsplit=1)[0]: line for line in extra}
    return [by_name[name] for name in names]


def lowest_requirements() -> list[str]:
    """Every run-time requirement, of the extras too, at its lower bound."""
    extras = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    return [re.sub(r">=\s*", "==", line, count=1) for line in lines]


def install_for_tests(session: nox.Session, *more: str, extras: str = "fast,cli,zstd") -> None:
    """Install the package with its run-time extras, and what the tests need."""
    tools = pinned("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "coverage")
    session.install("-e", f".[{extras}]", *tools, *more)


def pytest(session: nox.Session, *arguments: str, program: tuple[str, ...] = ("python",)) -> None:
    """Run pytest by `program`, its counts going into the tally."""
    TALLY.touch()  # so that a run that breaks down before it counts shows as a total all the same
    session.run(*program, "-m", "pytest", *arguments, *session.posargs, env={"DCACHE_TEST_TALLY": str(TALLY)})


@nox.session
def lint(session: nox.Session) -> None:
    """Style, likely mistakes, and the direction of the imports."""
    session.install(*pinned("ruff", "import-linter"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "."})


@nox.session
def types(session: nox.Session) -> None:
    """Strict mypy on all that ships, and a second checker on code such as users write."""
    install_for_tests(session, *pinned("mypy", "basedpyright", "nox", "sortedcontainers-stubs"))
    session.run("mypy")
    session.run("basedpyright")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test on one Python; what decides and does no I/O must be covered."""
    install_for_tests(session, extras="fast,cli,zstd,plot")
    pytest(session, "-n", "2", "-m", "not timing", *IN_MEMORY)
    pytest(session, "-n", "2", "--dist", "worksteal", *(f"--ignore={path}" for path in IN_MEMORY))
    pytest(session, "-m", "timing", *IN_MEMORY)
    deciding = sorted(str(path) for name in DECIDING for path in Path("tests/unit").glob(f"test_{name}.py"))
    few = ("--hypothesis-profile=few", "-m", "not timing and not cluster", *deciding)
    session.run("coverage", "erase")
    pytest(session, *few, program=("coverage", "run"))
    session.run("coverage", "report", "--show-missing", "--fail-under=95")


@nox.session(python=[version for version in PYTHONS if version != THIS_PYTHON])
def compat(session: nox.Session) -> None:
    """The tests in memory, by few examples, and the contract on the other supported Pythons that are installed."""
    install_for_tests(session)
    pytest(session, *ELSEWHERE)
    pytest(session, "tests/contract")


@nox.session
def build(session: nox.Session) -> None:
    """The wheel and the sdist, each in a clean environment without extras, must import and have a node to run."""
    session.install(*pinned("build"))
    work = Path(session.create_tmp()).resolve()
    dist = work / "dist"
    for old in dist.glob("*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", str(dist), ".")
    for pattern in ("*.whl", "*.tar.gz"):
        (artifact,) = dist.glob(pattern)
        check_artifact(session, artifact, work / "clean")


def check_artifact(session: nox.Session, artifact: Path, clean: Path) -> None:
    """Install `artifact` alone into a new venv at `clean` and use it from outside the source tree."""
    session.run("python", "-m", "venv", "--clear", str(clean))
    programs = clean / ("Scripts" if os.name == "nt" else "bin")
    python = str(programs / "python")
    session.run(python, "-m", "pip", "install", "--quiet", str(artifact), external=True)
    with session.chdir(clean):
        session.run(python, "-I", "-c", "from dcache import Client", external=True)
        session.run(str(programs / "dcache-node"), "--help", external=True, silent=True)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The tests in memory, by few examples, on the lowest Python with the lowest version of every dependency."""
    install_for_tests(session, *lowest_requirements())
    pytest(session, *ELSEWHERE)


@nox.session
def random(session: nox.Session) -> None:
    """The property tests with other examples than always; a given seed (`-- --hypothesis-seed=N`) is used instead."""
    install_for_tests(session)
    seed = [] if any("--hypothesis-seed" in given for given in session.posargs) else [str(secrets.randbits(32))]
    arguments = [f"--hypothesis-seed={number}" for number in seed]
    session.warn(f"to run this again: nox -s random -- {' '.join([*arguments, *session.posargs])}")
    pytest(session, "tests/unit", "--hypothesis-profile=random", *arguments)


@nox.session
def chaos(session: nox.Session) -> None:
    """Clients at work while nodes die, hang, join and leave and the network fails; `-- --seeds 20` takes more seeds."""
    install_for_tests(session)
    session.run("python", "-m", "tests.chaos.long", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """10,000 seeds of every profile on simulated machines; `-- --seeds 500 --profile changes` takes others."""
    install_for_tests(session)
    said = {"--seed", "--seeds", "--minutes", "--until-failure"} & {given.split("=")[0] for given in session.posargs}
    seeds = [] if said else ["--seeds", "10000"]
    session.run("python", "-m", "dcache.cli.sim", *seeds, *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "tests.simulation.mutations", "--rare")


@nox.session
def bench(session: nox.Session) -> None:
    """dcache beside other caches and their clients on this machine; `-- --quick` takes 3 minutes, all of it 40."""
    session.install("-e", ".[fast,cli]")
    for rival in PROJECT["dependency-groups"]["bench"]:  # one by one: those that cannot be installed here are left out
        session.install(rival, success_codes=range(256))
    session.run("python", "-m", "tests.benchmarks.side_by_side", *session.posargs)
