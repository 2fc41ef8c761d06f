"""Tests of the comparison that need PyTorch, its CPU build being enough. The processes are real;
gloo stands for NCCL, files for CUDA IPC."""

import json
import os
import shutil
import textwrap
from unittest import mock

import place
import shapes
import world
from scene import CONFIG, DENSE, RANDOM, main, need_torch, raises


def test_comparing_bytes(scene):
    """The comparison finds every single wrong element, and the loader's views leave none."""
    need_torch()
    import torch
    import memory
    from loader import Loader
    torch.set_num_threads(1)
    model, seed = scene.shapes(CONFIG, 2), RANDOM.randrange(2 ** 40)
    source = memory.allocate(model.memory_bytes, torch.device("cpu"), scene.dir / "source")
    tensors = memory.views(source, model.tensors)
    for number, tensor in enumerate(tensors):
        memory.fill(tensor, seed, number)
    for rank, own in enumerate(model.ranks):
        target = memory.allocate(own.memory_bytes, torch.device("cpu"), scene.dir / f"rank{rank}")
        target.fill_(memory.POISON)
        looked, wrong, first = memory.compare(target, model, rank, seed)
        assert looked == sum(p.nbytes for p in own.parameters)
        assert wrong > looked // 2 * 0.99 and first.startswith("model.embed_tokens.weight")
        loader = Loader(model, {rank: target})
        for number, tensor in enumerate(tensors):
            loader.load(number, tensor)
        with mock.patch.object(memory, "COMPARE_ELEMENTS", 100):
            assert memory.compare(target, model, rank, seed) == (looked, 0, "")
        assert memory.compare(target, model, rank, seed + 1)[1] > looked // 2 * 0.99
        for _ in range(20):
            parameter = RANDOM.choice(own.parameters)
            element = RANDOM.randrange(parameter.numel)
            at = parameter.offset + 2 * element + RANDOM.randrange(2)
            flipped = 1 << RANDOM.randrange(8)
            target[at] ^= flipped
            _, wrong, first = memory.compare(target, model, rank, seed)
            assert wrong == 1 and first.startswith(f"{parameter.name} element {element},")
            target[at] ^= flipped
            assert memory.compare(target, model, rank, seed)[1] == 0


def dry(scene, config, *args):
    code, out = scene.compare("--model", scene.config(config), "--bin", scene.bin, "--dry-run",
                              "--json", "--bucket", 3000, *args)
    found = {one["name"]: one for one in json.loads(out)["figures"]}
    assert code == 0, found
    for name in ("index-then-tensor", "tensor", "packed"):
        assert found[name]["verified_bytes"] > 0 and found[name]["time"]["median"] > 0
    assert found["strew"]["absent"] and found["checkpoint-engine"]["absent"]
    return found


def test_dry_run(scene):
    """All mechanisms over gloo, as on one GPU: real processes, bytes compared."""
    need_torch()
    found = dry(scene, CONFIG)
    model = scene.shapes(CONFIG, 2)
    every = sum(p.nbytes for rank in model.ranks for p in rank.parameters)
    assert found["packed"]["verified_bytes"] == every
    assert found["packed"]["bytes"] == model.payload_bytes


def test_many_gpus_dry(scene):
    """As on two GPUs with four workers, where some share the trainer's and some another."""
    need_torch()
    dry(scene, DENSE, "--gpus", 2, "--tp", 4)


def settings(scene, model_tp, gpus, servers):
    (scene.dir / "shapes.json").write_text(
        shapes.load(scene.bin, scene.config(CONFIG), 0, model_tp), encoding="utf-8")
    return place.place(gpus, model_tp, servers), {
        "backend": "gloo", "gpus": gpus, "tp": model_tp, "servers": servers, "deadline": 60,
        "directory": str(scene.dir), "shapes": str(scene.dir / "shapes.json"),
        "bucket_bytes": 3000}


def test_worker_killed(scene):
    """Wrong bytes and a worker's death are the mechanism's failure, and nothing stays behind."""
    need_torch()
    with world.World(*settings(scene, 2, 1, False)) as there:
        assert there.sample("packed")["verified_bytes"] > 0
        popens = [child.popen for child in there.children.all.values()]
        raises(world.MechanismError, there._verify, "packed", 1, has="wrong bytes in worker0")
        # Without its parent's end of the socket a process ends by itself.
        receiver = there.children.all.pop("receiver0")
        receiver.socket.close()
        assert receiver.popen.wait(20) == 3
        there.children.all["worker1"].popen.kill()
        error = raises(world.MechanismError, there.sample, "tensor", has="died")
        assert error.mechanism == "tensor" and "worker1" in str(error)
    assert all(popen.poll() is not None for popen in popens)


FAKE_ENGINE = '''
    """Has checkpoint-engine's public functions, over files instead of IPC and ZeroMQ."""
    import json, os, pathlib, threading, time
    import torch

    ROOT = pathlib.Path(__file__).parent.parent

    class ParameterServer:
        def __init__(self, *, auto_pg=True):
            assert auto_pg
            self.rank = int(os.environ["RANK"])
            self.count = 0
            assert int(os.environ["WORLD_SIZE"]) > self.rank and os.environ["MASTER_PORT"]
            self.tensors = None

        def register_checkpoint(self, checkpoint_name, *, files=None, named_tensors=None,
                                use_shared_memory_pool=False):
            assert use_shared_memory_pool and self.tensors is None and self.rank == 0
            self.tensors = {name: tensor.clone() for name, tensor in named_tensors.items()}

        def gather_metas(self, checkpoint_name):
            self.count += 1
            path = ROOT / f"gathered-{self.count}"
            if self.rank == 0:
                torch.save(self.tensors, f"{path}.new")
                os.rename(f"{path}.new", path)
            end = time.monotonic() + 60
            while not path.exists():
                assert time.monotonic() < end
                time.sleep(0.01)

        def update(self, checkpoint_name, req_func):
            paths = [(f"CPU-{g}", str(ROOT / f"gathered-{self.count}")) for g in range(8)]
            thread = threading.Thread(target=req_func, args=(paths,))
            thread.start()
            thread.join()

        def unregister_checkpoint(self, checkpoint_name):
            assert self.tensors is not None
            self.tensors = None

    def update_weights_from_ipc(context, path, device_id, *, run, post_hook=None):
        tensors = list(torch.load(path).items())
        half = len(tensors) // 2
        run(tensors[:half])
        run(tensors[half:])
        post_hook()
'''


def test_checkpoint_engine_calls(scene):
    """What is called of checkpoint-engine, and by whom, with a stand-in of the same names."""
    need_torch()
    package = scene.dir / "checkpoint_engine"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    for module in ("ps", "worker"):
        (package / f"{module}.py").write_text(textwrap.dedent(FAKE_ENGINE), encoding="utf-8")
    (scene.dir / "zmq.py").write_text("class Context:\n    pass\n", encoding="utf-8")
    with mock.patch.dict(os.environ, PYTHONPATH=str(scene.dir)):
        for gpus in (1, 2):
            shutil.rmtree(scene.dir / "store", ignore_errors=True)
            (scene.dir / "store").unlink(missing_ok=True)
            for old in scene.dir.glob("gathered-*"):
                old.unlink()
            with world.World(*settings(scene, 2, gpus, True)) as there:
                for _ in range(2):
                    result = there.sample("checkpoint-engine")
                    assert result["verified_bytes"] > 0
                    assert 0 < result["update_seconds"] < result["seconds"]
                assert there.sample("packed")["verified_bytes"] > 0


if __name__ == "__main__":
    main(globals())
