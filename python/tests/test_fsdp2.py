"""examples/fsdp2.py runs, as a user would run it."""

import pathlib

import pytest
from conftest import run_script

pytest.importorskip("torch.distributed.fsdp")
EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("how", [[], ["--gather"]])
def test_fsdp2(how):
    run = run_script(EXAMPLES / "fsdp2.py", "--steps", "3", *how)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("committed") == 3
    assert run.stdout.count("gathering in ") == len(how)
    for rank in range(2):  # 7 parameters at each of 3 versions
        assert f"worker {rank}: 21 parameters equal" in run.stdout
