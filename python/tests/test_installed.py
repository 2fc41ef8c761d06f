"""What is tested is the wheel, where STREW_TEST_INSTALLED=1 says so, and it is complete."""

import os
import pathlib
import subprocess
import sys
import sysconfig

import pytest

import strew
from strew import _lib

TESTS = pathlib.Path(__file__).resolve().parent


@pytest.mark.skipif(os.environ.get("STREW_TEST_INSTALLED") != "1", reason="no wheel is meant")
def test_the_package_is_the_wheels():
    package = pathlib.Path(strew.__file__).resolve().parent
    places = {pathlib.Path(sysconfig.get_path(which)).resolve() for which in ("purelib", "platlib")}
    assert package.parent in places, package
    assert pathlib.Path(_lib.lib._name).resolve().parent == package / "lib"
    for name in ("strewd", "strew"):
        program = pathlib.Path(strew.program(name)).resolve()
        assert program.parent == package / "bin" and os.access(program, os.X_OK), program
        run = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
        assert name in run.stdout


def test_nothing_else_is_tested_in_its_place(tmp_path):
    """A wheel that cannot be imported ends the run, instead of the source tree being tested."""
    (tmp_path / "strew.py").write_text("raise ImportError('broken wheel')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "STREW_TEST_INSTALLED": "1"}
    code = f"import sys; sys.path.append({str(TESTS)!r}); import conftest"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True,
                         check=False)
    assert run.returncode and run.stderr.splitlines()[-1] == "ImportError: broken wheel"
