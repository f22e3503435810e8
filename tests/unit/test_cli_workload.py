"""The statistics of a module, and which modules there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcache.cli.workload import complexity, find_modules, largest, library, look_alikes, statistics_of

SOURCE = b"""\
# one comment
import os


class Shop:
    def price(self, item, discount):
        if item and discount or not item:  # another
            return [one for one in item if one if discount]
        return 0

    async def close(self):
        def inner():
            while True:
                pass

        return inner


def empty():
    pass
"""


def test_statistics_of_a_small_module_are_what_one_counts_by_hand() -> None:
    assert statistics_of(SOURCE) == {
        "lines": 20,
        "comments": 2,
        "functions": 4,
        "classes": 1,
        "branches": 7,  # if, and, or, a comprehension with two conditions, while
        "longest_function": {"name": "close", "count": 6},
        "most_complex_function": {"name": "price", "count": 7},
        "distinct_identifiers": 5,
        "identifiers": {"item": 4, "discount": 3, "one": 3, "self": 2, "inner": 1},
        "look_alikes": [],
    }


def test_branches_of_an_inner_function_are_its_own() -> None:
    import ast

    tree = ast.parse(SOURCE)
    by_name = {node.name: node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert {name: complexity(node) for name, node in by_name.items()} == {
        "price": 7,
        "close": 1,
        "inner": 2,
        "empty": 1,
    }


def test_a_module_without_functions_has_no_longest_one() -> None:
    told = statistics_of(b"")
    assert told["longest_function"] == told["most_complex_function"] == {"name": "", "count": 0}
    assert told["lines"] == 0


def test_names_that_differ_by_a_letter_look_alike_and_short_ones_are_not_compared() -> None:
    assert look_alikes(["receive", "recieve", "other", "ab", "ac"]) == [["receive", "recieve"]]


def test_source_that_only_warns_is_analysed_without_a_word() -> None:
    assert statistics_of(b'x = "\\d"')["identifiers"] == {"x": 1}


def test_modules_are_found_by_their_dotted_names_and_tests_are_left_out(tmp_path: Path) -> None:
    for name in ("one.py", "pack/__init__.py", "pack/two.py", "test/three.py", "site-packages/four.py", "no-name.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("pass\n" * (2 if "two" in name else 1))
    found = find_modules(tmp_path)
    assert set(found) == {"one", "pack", "pack.two"}
    assert list(largest(found, 2)) == ["pack.two", "one"]


def test_a_directory_that_is_not_there_has_no_modules(tmp_path: Path) -> None:
    assert find_modules(tmp_path / "none") == {}


@pytest.mark.parametrize("name", ["ast", "asyncio.tasks", "json"])
def test_the_library_of_this_python_is_found(name: str) -> None:
    assert name in find_modules(library())
