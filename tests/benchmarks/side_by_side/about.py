"""Where and with what something was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.side_by_side import clients, clients_async
from tests.benchmarks.side_by_side.race import Missing
from tests.benchmarks.side_by_side.servers import MEMCACHED, REDIS, program


def machine() -> str:
    """One line on the hardware and the system."""
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return f"{found[1] if found else model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Of Python, the servers and every client that is installed."""
    told = {"Python": platform.python_version()}
    for name, pattern in ((MEMCACHED, r"memcached (\S+)"), (REDIS, r"v=(\S+)")):
        try:
            out = subprocess.run([program(name), "--version"], check=False, capture_output=True, text=True).stdout
        except (Missing, OSError):
            continue
        told[name] = found[1] if (found := re.search(pattern, out)) else out.strip()
    packages = {package for rival in (*clients.RIVALS, *clients_async.RIVALS) for package in rival.packages}
    for package in sorted({*packages, "uvloop", "msgpack"}):
        try:
            told[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return told


def command(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "tests.benchmarks.side_by_side", *arguments])
