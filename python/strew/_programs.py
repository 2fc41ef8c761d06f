"""The console scripts: the wheel's own strewd and strew."""

from __future__ import annotations

import os
import pathlib
import sys


def program(name: str) -> str:
    """The path of "strewd" or "strew": the wheel's, else what the PATH has."""
    here = pathlib.Path(__file__).parent / "bin" / name
    return str(here) if here.exists() else name


def _run(name: str) -> None:
    path = program(name)
    os.execvp(path, [path, *sys.argv[1:]])


def strewd() -> None:
    """The broker."""
    _run("strewd")


def strew() -> None:
    """The command-line tool."""
    _run("strew")
