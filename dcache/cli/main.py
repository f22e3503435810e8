"""`dcache`: the command.  What it does is in `program`; here stands only what to say when click and rich are
missing."""

from __future__ import annotations

import sys

MISSING = 'dcache: the command needs click and rich: pip install "dcache-py[cli]"'


def main() -> None:
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError:
        print(MISSING, file=sys.stderr)
        sys.exit(2)
    from dcache.cli.program import program

    program(prog_name="dcache")


if __name__ == "__main__":
    main()
