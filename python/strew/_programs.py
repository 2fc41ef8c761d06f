"""The console scripts: the wheel's own strewd and strew."""

from __future__ import annotations

import os
import pathlib
import sys


def program(name: str) -> str:
    """The path of "strewd" or "strew".

    Where STREW_LIBRARY names a library, that of ``bin`` beside the library's folder (as a build
    folder has it: lib/libstrew.so.0, bin/strewd); else the wheel's; else what the PATH has.
    """
    places = [pathlib.Path(__file__).parent / "bin"]
    if os.environ.get("STREW_LIBRARY"):
        library = pathlib.Path(os.environ["STREW_LIBRARY"]).absolute()
        places.insert(0, library.parent.parent / "bin")
    return next((str(at / name) for at in places if (at / name).exists()), name)


def _run(name: str) -> None:
    path = program(name)
    os.execvp(path, [path, *sys.argv[1:]])


def strewd() -> None:
    """The broker."""
    _run("strewd")


def strew() -> None:
    """The command-line tool."""
    _run("strew")
