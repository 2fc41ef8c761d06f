"""The check of PyTorch's memory on GPUs, without one: it compares all, and finds what is wrong."""

import json
import os
import pathlib

import pytest
from conftest import run_script

pytest.importorskip("torch")
SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "gpu" / "torch_check.py"
LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
         "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 128}


def run_check(folder, *options):
    config = folder / "config.json"
    config.write_text(json.dumps(LLAMA))
    return run_script(SCRIPT, "--config", config, "--backend", "host", "--alloc", "default",
                      *options)


def test_every_way(tmp_path):
    run = run_check(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "torch_check: ok runs=4 failed=0" in run.stdout
    assert run.stdout.count("version 3 committed") == 4


def test_wrong_bits_are_found(tmp_path, monkeypatch):
    """Workers that expect other bits than the trainer sends."""
    (tmp_path / "sitecustomize.py").write_text('''
import sys
if "worker" in sys.argv:
    sys.argv[sys.argv.index("--seed") + 1] += "1"
''')
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(
        filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    run = run_check(tmp_path, "--apply", "direct", "--brokers", "1", "--versions", "1")
    assert run.returncode == 1 and "failed=1" in run.stdout, run.stdout + run.stderr
    assert "qkv_proj: differs" in run.stderr
