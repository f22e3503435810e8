"""Real work for the demonstration: what the source of a module of the standard library is like.

`statistics_of` is a pure function of the source, and slow: it parses, tokenizes, and compares names with each other.
Its result is plain data, and the same in every process that runs the same Python.
"""

from __future__ import annotations

import ast
import io
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path
from typing import TypedDict

TOP = 10  # identifiers whose frequency is told
COMPARED = 60  # of the most frequent identifiers, pairs of which may look alike
ALIKE = 0.85  # `SequenceMatcher.ratio` from which they do

_LEFT_OUT = frozenset({"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.comprehension,
    ast.match_case,
)


class Named(TypedDict):
    """A function and a number about it; the name is empty where a module has no function."""

    name: str
    count: int


class Statistics(TypedDict):
    """What one module is like.  `branches` are counted as in cyclomatic complexity."""

    lines: int
    comments: int
    functions: int
    classes: int
    branches: int
    longest_function: Named
    most_complex_function: Named
    distinct_identifiers: int
    identifiers: dict[str, int]
    look_alikes: list[list[str]]


def library() -> Path:
    """Where the standard library's sources are, if this Python has them."""
    return Path(sysconfig.get_path("stdlib"))


def find_modules(root: Path) -> dict[str, Path]:
    """The modules under `root` by dotted name, without tests and what is not the library's own; empty without
    sources."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not _LEFT_OUT & set(parts) and all(part.isidentifier() for part in parts):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def largest(modules: Mapping[str, Path], count: int) -> dict[str, Path]:
    """The `count` modules with most source, largest first."""
    ranked = sorted(modules, key=lambda name: (-modules[name].stat().st_size, name))
    return {name: modules[name] for name in ranked[:count]}


def statistics_of(source: bytes) -> Statistics:
    """The statistics of a module's source.  `SyntaxError` if this Python cannot read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the source, which is not ours
        tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, _FUNCTIONS)]
    names = Counter(name for node in nodes for name in _identifiers(node))
    return {
        "lines": len(source.splitlines()),
        "comments": sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(io.BytesIO(source).readline)),
        "functions": len(functions),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "branches": sum(map(_branches, nodes)),
        "longest_function": _most({f"{node.name}:{node.lineno}": _length(node) for node in functions}),
        "most_complex_function": _most({f"{node.name}:{node.lineno}": complexity(node) for node in functions}),
        "distinct_identifiers": len(names),
        "identifiers": dict(_ranked(names)[:TOP]),
        "look_alikes": look_alikes([name for name, _ in _ranked(names)[:COMPARED]]),
    }


def complexity(function: ast.AST) -> int:
    """One more than the branches of a function, those of functions defined in it not counted."""
    total, waiting = 1, list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if not isinstance(node, _FUNCTIONS):
            total += _branches(node)
            waiting.extend(ast.iter_child_nodes(node))
    return total


def look_alikes(names: list[str]) -> list[list[str]]:
    """Pairs of long names that are easily taken for each other."""
    long = sorted(name for name in names if len(name) > 4)
    pairs = ((one, other, SequenceMatcher(None, one, other)) for one, other in combinations(long, 2))
    return [[one, other] for one, other, match in pairs if match.ratio() >= ALIKE]


def _branches(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    return len(node.ifs) + 1 if isinstance(node, ast.comprehension) else int(isinstance(node, _BRANCHES))


def _identifiers(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.arg):
        yield node.arg


def _ranked(names: Counter[str]) -> list[tuple[str, int]]:
    return sorted(names.items(), key=lambda item: (-item[1], item[0]))


def _most(counts: dict[str, int]) -> Named:
    """The name with the highest count; of several the first."""
    name = max(counts, key=counts.__getitem__, default="")
    return {"name": name.partition(":")[0], "count": counts.get(name, 0)}


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None  # parsed, not made by hand
    return function.end_lineno - function.lineno + 1
