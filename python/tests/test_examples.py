"""The examples run, as a user would run them."""

import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"


def test_rl_loop():
    run = subprocess.run([sys.executable, EXAMPLES / "rl_loop.py", "--steps", "3"], timeout=300,
                         capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("committed") == 3 and run.stdout.count("logits equal") == 3
    assert run.stdout.count("longest pause") == 2
