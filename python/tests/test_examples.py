"""The examples run, as a user would run them, and the bench of Python's part."""

import json
import pathlib

import pytest
from conftest import run_script

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"


def python_cost(*options):
    return run_script(EXAMPLES.parent / "bench" / "python_cost.py", *options)


def rl_loop(*options):
    return run_script(EXAMPLES / "rl_loop.py", *options)


@pytest.mark.parametrize("device, memory, route", [
    ("cpu", "default", "pull 0"), ("cpu", "private", "raw 0"),
    ("cuda", "default", "pull 0"), ("cuda", "expandable", "pull 0"), ("cuda", "private", "raw 0")])
def test_rl_loop(device, memory, route):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    # Others may use the machine's cores: what is allowed beside the report is generous.
    run = rl_loop("--steps", "3", "--device", device, "--memory", memory, "--allowance-ms", "500")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("committed") == 3 and run.stdout.count("logits equal") == 3
    assert run.stdout.count("longest pause") == 2
    assert route in run.stdout and "raw 0, pull 0" not in run.stdout


@pytest.mark.parametrize("memory, route", [
    ("default", "pull 0"), ("expandable", "pull 0"), ("private", "raw 0")])
def test_rl_loop_on_two_gpus(memory, route):
    if torch.cuda.device_count() < 2:
        pytest.skip("no two GPUs")
    run = rl_loop("--steps", "3", "--device", "cuda:0", "--worker-devices", "0,1",
                  "--memory", memory, "--allowance-ms", "500")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "workers on cuda:0 and cuda:1" in run.stdout
    assert run.stdout.count("logits equal") == 3 and route in run.stdout


def test_rl_loop_compares_pauses():
    run = rl_loop("--steps", "3", "--allowance-ms", "-100000")
    assert run.returncode == 1 and "stood still for" in run.stderr


@pytest.mark.parametrize("options", [
    ["--memory", "expandable"], ["--worker-devices", "cpu"], ["--worker-devices", "cpu,cuda"],
    ["--worker-devices", "0,1"], ["--device", "gpu7"]])
def test_rl_loop_refuses(options):
    assert rl_loop(*options).returncode == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_python_cost(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    run = python_cost("--tensors", "300", "--samples", "3", "--json", "--device", device)
    assert run.returncode == 0, run.stdout + run.stderr
    said = json.loads(run.stdout)
    assert not said["wrong"] and all(row["median"] > 0 for row in said["rows"])
    assert [row["wanted"] for row in said["rows"] if row["wanted"]] == [10e-6, 1e-3]


def test_python_cost_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = python_cost("--device", "cuda")
    assert (run.returncode, run.stderr) == (3, "no GPU\n")
