"""strew-bench on the host backend, small: that its figures are there, and its bytes right."""

import json
import pathlib
import re
import shutil
import statistics
import xml.etree.ElementTree

import scene

MODELS = pathlib.Path(__file__).resolve().parents[2] / "bench" / "models"
TINY = {"model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 96,
        "moe_intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "num_experts": 6, "vocab_size": 256,
        "tie_word_embeddings": False}


def bench(stage, *argv):
    """Runs it with --json; every figure's numbers are checked against its own samples."""
    result = stage.run("strew-bench", *argv, "--json", seconds=stage.within(120))
    assert result.returncode == 0, result
    said = json.loads(result.stdout)
    figures = {}
    for figure in said["figures"]:
        figures[figure["name"]] = figure
        medians = {}
        for key in ("time", "value", "raw"):
            if key in figure:
                samples = figure[key]["samples"]
                assert len(samples) >= 5, figure
                medians[key] = statistics.median(samples)
                assert abs(figure[key]["median"] - medians[key]) <= 1e-6 * abs(medians[key]), figure
                assert figure[key]["min"] == min(samples), figure
                assert figure[key]["max"] == max(samples), figure
        if "ratio" in figure:
            ratio = (medians["raw"] / medians["time"] if "time" in medians
                     else medians["value"] / medians["raw"])
            assert abs(figure["ratio"] - ratio) <= 1e-6 * ratio, figure
    return said, figures


def test_update_paths(stage):
    config = stage.dir / "config.json"
    config.write_text(json.dumps(TINY))
    for options in (("--path", "node"), ("--path", "wire", "--slot", "64K"),
                    ("--path", "host", "--apply", "staged", "--shadow", "host"),
                    ("--path", "node", "--gate", "held", "--apply", "staged"),
                    ("--path", "wire", "--gate", "held", "--tp", "1")):
        _, figures = bench(stage, "update", "--backend", "host", "--model", config, "--samples",
                           5, *options)
        update = figures["update"]
        assert update["time"]["min"] > 0 and update["ratio"] > 0
        compared = figures["bytes compared"]["number"]
        assert compared >= update["bytes"] and figures["bytes wrong"]["number"] == 0
        assert ("pause of the held gate, slowest worker" in figures) == ("held" in options)
        assert ("    wire done" in figures) == ("wire" in options)
        assert ("    local copies done" in figures) == ("wire" not in options)


def test_update_cut(stage):
    for count in (1, 300):
        said, figures = bench(stage, "update", "--backend", "host", "--cut", count, "--bytes",
                              "1M", "--samples", 5, "--seed", 11)
        assert said["machine"]["seed"] == "11" and f"{count} tensors" in said["machine"]["model"]
        assert figures["bytes compared"]["number"] >= 900_000


def test_update_long(stage):
    """Tensors that go over the wire from where they lie, and short ones packed between them."""
    for cut in (5, 12):
        _, figures = bench(stage, "update", "--backend", "host", "--path", "wire", "--slot", "20M",
                           "--cut", cut, "--bytes", "40M", "--samples", 5)
        assert figures["bytes compared"]["number"] >= 39_000_000
        assert figures["bytes wrong"]["number"] == 0


def test_copy(stage):
    plot = stage.dir / "plot.svg"
    _, figures = bench(stage, "copy", "--backend", "host", "--least", "4K", "--most", "200K",
                       "--samples", 5, "--row", 1000, "--plot", plot)
    assert figures["bytes wrong"]["number"] == 0
    # After each of four ways and lengths, all the memory there is: twice the longest.
    assert figures["bytes compared"]["number"] == 4 * 4 * 2 * 200 * 1024
    copies = [figure for name, figure in figures.items() if name.startswith("within the host")]
    assert len(copies) == 4 * 4 and all(figure["ratio"] > 0 for figure in copies)
    assert "within the host, engine, 200.0 KiB" in figures  # the longest that was wanted
    assert figures["within the host, strew, rows, 64.0 KiB"]["bytes"] == 65_000
    drawn = xml.etree.ElementTree.parse(plot)
    lines = drawn.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert [len(line.get("points").split()) for line in lines] == [4] * 4
    assert [line.get("points").split()[-1].split(",")[0] for line in lines] == ["630.0"] * 4


def test_copy_of_rows_beside_as_many_bytes(stage):
    """Rows that do not fill the length stand beside plain copies of their own bytes, and beside
    those of all others where they do."""
    for row, whole in ((1000, False), (1024, True)):
        _, figures = bench(stage, "copy", "--backend", "host", "--least", "4K", "--most", "16K",
                           "--samples", 5, "--row", row)
        for length in (4 << 10, 16 << 10):
            engine, pieces, rows = (figures[f"within the host, {way}, {length / 1024:.1f} KiB"]
                                    for way in ("engine", "strew, 64 KiB each", "strew, rows"))
            assert rows["bytes"] == length // row * row and engine["bytes"] == length, rows
            assert pieces["raw"] == engine["raw"], (pieces, engine)
            assert (rows["raw"] == engine["raw"]) == whole, (row, rows, engine)


def on_gpus(stage, count):
    """What follows runs on the stand-ins for the driver and NCCL (tests/standin). Gives the file
    of what they do wrong."""
    stage.env["LD_LIBRARY_PATH"] = str(stage.bin.parent / "standin")
    stage.env["STANDIN_DEVICES"] = str(count)
    folder = stage.dir / "plan"
    folder.mkdir()
    stage.env["STANDIN_DIR"] = str(folder)
    return folder / "faults"


def test_update_on_gpus(stage):
    """The cuda backend's side of it, on one GPU and on two: all bytes, and NCCL's raw figures."""
    on_gpus(stage, 2)
    config = stage.dir / "config.json"
    config.write_text(json.dumps(TINY))
    two = ("--worker-devices", "0,1")
    pinned = ("--apply", "staged", "--shadow", "host")
    for options in (("--path", "node"), ("--path", "node", *two, "--apply", "staged"),
                    ("--path", "node", *two, *pinned, "--gate", "held"),
                    ("--path", "wire", *two, *pinned), ("--path", "host", *pinned),
                    ("--path", "wire", "--gate", "held", "--apply", "staged"),
                    ("--path", "wire", "--node-device", 1, *two), ("--path", "host", *two)):
        _, figures = bench(stage, "update", "--backend", "cuda", "--model", config, "--samples", 5,
                           "--slot", "64K", *options)
        update = figures["update"]
        assert update["ratio"] > 0 and figures["bytes wrong"]["number"] == 0, options
        assert figures["bytes compared"]["number"] >= update["bytes"], options
        assert ("NCCL, 1 GiB" in figures) == ("wire" in options), options
        # Over a wire or a link nothing stands beside a kernel; nor does memory that is not the
        # trainer's.
        alone = "node" in options and "--worker-devices" not in options
        assert ("kernel over all pieces" in figures) == alone, options
        over = figures.get("bytes over the wire", {"number": 0})["number"]
        assert (over >= update["bytes"]) == ("wire" in options), options
        assert ("device memory taken by brokers on another GPU than the trainer's" in figures) == \
            ("0,1" in options), options


def test_raw_ranks_take_the_brokers_interface(stage):
    """Plain NCCL and the brokers are told the same one: loopback, where nobody has said another."""
    plan = on_gpus(stage, 2).parent
    stage.env.pop("NCCL_SOCKET_IFNAME", None)
    for said, taken in ((None, "lo"), ("eth7", "eth7")):
        if said:
            stage.env["NCCL_SOCKET_IFNAME"] = said
        bench(stage, "update", "--backend", "cuda", "--path", "wire", "--cut", 3, "--bytes", "1M",
              "--samples", 5)
        told = [{name: number for name, number in scene.counts(path).items()
                 if name.startswith("interface.")} for path in plan.glob("*.nccl")]
        # Two ranks of plain NCCL, and two brokers, in one epoch.
        assert [one for one in told if one] == 4 * [{f"interface.{taken}": 1}], told
        for path in plan.glob("*.nccl"):
            path.unlink()


def test_pause_from_the_host(stage):
    """The pause stands beside a copy within the GPU, also where the trainer is on the host."""
    on_gpus(stage, 1).write_text("host_copy:1+=slow:30")
    _, figures = bench(stage, "update", "--backend", "cuda", "--path", "host", "--apply", "staged",
                       "--gate", "held", "--cut", 3, "--bytes", "1M", "--samples", 5)
    assert figures["update"]["raw_name"] == "pinned copy"
    pause = figures["pause of the held gate, slowest worker"]
    assert pause["raw_name"] == "plain copy"
    assert pause["raw"]["median"] < 0.03 <= figures["update"]["raw"]["median"], figures


def test_from_the_host_to_two_gpus(stage):
    """A pinned copy to each GPU, as long as what its workers get; the slower one is the raw figure,
    on whichever GPU it is, and a GPU without workers has none."""
    on_gpus(stage, 2)
    host = ("update", "--backend", "cuda", "--path", "host", "--cut", 3, "--bytes", "3M",
            "--samples", 5)
    # The third worker is where the last one is that was named.
    for devices, shares in (("0,1", {0: 1 / 3, 1: 2 / 3}), ("1,0", {0: 2 / 3, 1: 1 / 3})):
        _, figures = bench(stage, *host, "--tp", 3, "--worker-devices", devices)
        copies = {i: figures[f"pinned copy to GPU {i}"] for i in shares}
        update = figures["update"]
        for i, share in shares.items():
            assert abs(copies[i]["bytes"] / update["bytes"] - share) < 0.01, (copies, update)
        slowest = max(copies.values(), key=lambda copy: copy["time"]["median"])
        assert update["raw"] == slowest["time"] and update["raw_name"] == slowest["name"], figures
    _, figures = bench(stage, *host, "--worker-devices", "1")
    assert figures["update"]["raw_name"] == "pinned copy to GPU 1", figures
    assert not any(name.startswith("pinned copy") for name in figures), figures
    _, figures = bench(stage, *host)
    assert figures["update"]["raw_name"] == "pinned copy", figures


def test_wrong_bytes(stage):
    """What a wire has spoilt, or was never copied, is counted, and the bench ends with 1."""
    faults = on_gpus(stage, 2)
    update = ("update", "--cut", 3, "--bytes", "1M")
    for fault, argv, least, most in (
            ("ncclBroadcast:1+=flip", (*update, "--path", "wire"), 1, 100),
            ("cuLaunchKernel:1+=lost", update, 900_000, 1 << 20),
            ("cuLaunchKernel:1+=lost", ("register", "--pieces", 50, "--tp", 1), 20_000, 1 << 20),
            ("cuLaunchKernel:1+=lost", ("copy", "--least", "4K", "--most", "64K"), 60_000, 1 << 20),
            ("cuMemcpyAsync:1+=lost", ("copy", "--least", "4K", "--most", "64K"), 60_000,
             1 << 20)):
        faults.write_text(fault)
        result = stage.run("strew-bench", *argv, "--backend", "cuda", "--samples", 5, "--json",
                           seconds=120)
        assert result.returncode == 1 and "bytes are wrong" in result.stderr, (fault, argv, result)
        figures = {figure["name"]: figure for figure in json.loads(result.stdout)["figures"]}
        assert least <= figures["bytes wrong"]["number"] <= most, (fault, argv, figures)


def broker_contexts(plan):
    """How many contexts a broker made, of a run that is over. It alone opens others' memory."""
    counts = [scene.counts(path) for path in plan.glob("*.cuda")]
    made = [one["calls.cuDevicePrimaryCtxRetain"] for one in counts
            if one.get("calls.cuIpcOpenMemHandle")]
    for path in plan.glob("*.cuda"):
        path.unlink()
    return made


def test_update_by_engines_and_kernel(stage):
    """Runs that copy engines take over the link, while a kernel takes the rest beside them; on the
    GPU that has workers alone the broker takes nothing, but where it keeps their shadows."""
    plan = on_gpus(stage, 2).parent
    config = stage.dir / "config.json"
    config.write_text(json.dumps({**TINY, "hidden_size": 1024, "num_hidden_layers": 1,
                                  "vocab_size": 18000}))
    _, figures = bench(stage, "update", "--backend", "cuda", "--model", config, "--samples", 5,
                       "--worker-devices", "0,1")
    assert figures["bytes wrong"]["number"] == 0
    assert figures["bytes compared"]["number"] >= 2 * 2 * 18000 * 1024
    # The stand-in counts memory in each process by itself, so that this figure is 0 there whatever
    # a broker does; what would take memory is a context.
    assert figures["device memory taken by brokers on another GPU than the trainer's"][
        "number"] == 0, figures
    assert broker_contexts(plan) == [1]
    bench(stage, "update", "--backend", "cuda", "--cut", 3, "--bytes", "1M", "--samples", 5,
          "--worker-devices", "0,1", "--apply", "staged")
    assert broker_contexts(plan) == [2]


def test_copy_on_gpus(stage):
    """Every way, within and between two GPUs, by either issuer."""
    on_gpus(stage, 2)
    _, figures = bench(stage, "copy", "--device", 0, "--peer", 1, "--least", "4K", "--most", "200K",
                       "--samples", 5)
    assert figures["bytes wrong"]["number"] == 0
    for place in ("within the GPU", "to the peer, by its source", "to the peer, by its target",
                  "from the peer, by its source", "from the peer, by its target", "host to GPU",
                  "within the peer", "within the GPU, by the peer", "within the peer, by the GPU"):
        batch = [figure for name, figure in figures.items()
                 if name.startswith(f"{place}, engine, 64 KiB, a batch")]
        assert len(batch) == 4 and all(figure["ratio"] > 0 for figure in batch), (place, batch)


def test_push(stage):
    """From a disk; what a file system keeps in memory is refused, and nothing stays behind.
    Where the test's own folder is such a one, it has been refused, and the rest is skipped."""
    config = stage.dir / "config.json"
    config.write_text(json.dumps(TINY))
    no_disk = False
    for directory, keeps in ((stage.dir / "checkpoint", None), (pathlib.Path("/dev/shm"), True)):
        if keeps:
            directory = directory / f"strew-bench-{stage.dir.name}"
        argv = ("push", "--backend", "host", "--model", config, "--directory", directory,
                "--shard", "200K", "--samples", 5)
        result = stage.run("strew-bench", *argv, seconds=120)
        if keeps is None and result.returncode != 3:
            assert result.returncode == 0, result
            _, figures = bench(stage, *argv)
            assert figures["bytes wrong"]["number"] == 0
            assert figures["bytes compared"]["number"] >= figures["  update"]["bytes"]
            assert figures["strew push, start to end"]["ratio"] > 0
        else:
            assert result.returncode == 3 and "name a directory on a disk" in result.stderr, result
            no_disk |= keeps is None
        assert not directory.exists()
    if no_disk:
        raise scene.Skip(f"the file system of {stage.dir} keeps everything in memory")


def test_register(stage):
    _, figures = bench(stage, "register", "--backend", "host", "--pieces", 500, "--tp", 3,
                       "--samples", 5)
    for what in ("describe", "register", "plan", "later updates"):
        assert f"3 x 500 pieces: {what}" in figures
    # After the first update and the later ones, of five samples; and of the one for warmth.
    assert figures["bytes compared"]["number"] == 2 * (5 * 3 * 500 + 1) * 512
    assert figures["bytes wrong"]["number"] == 0


def test_idle(stage):
    for path in ("node", "wire", "host"):
        _, figures = bench(stage, "idle", "--backend", "host", "--seconds", 0.05, "--bytes", "1M",
                           "--path", path, "--samples", 5)
        for load in ("products", "memory"):
            assert figures[f"{load}, alone"]["value"]["min"] > 0
            assert figures[f"{load}, attached, idle"]["ratio"] > 0
            for apply in ("direct", "staged"):
                assert figures[f"{load}, updates, {apply}"]["ratio"] > 0
                assert figures[f"{load}, updates, {apply}: bytes updated"]["value"]["min"] > 0
        # After each of four stretches of updates, in each of five rounds.
        assert figures["bytes compared"]["number"] == 4 * 5 * (1 << 20), path
        assert figures["bytes wrong"]["number"] == 0


def test_idle_on_gpus(stage):
    """The load on the trainer's GPU or on the other one, with workers on both: each where it was
    named to be."""
    plan = on_gpus(stage, 2).parent
    small = ("idle", "--backend", "cuda", "--seconds", 0.02, "--bytes", "1M", "--samples", 5)
    for device, other, options in ((1, 0, ("--trainer-device", 0, "--worker-devices", "0,1")),
                                   (1, 0, ("--path", "wire")),
                                   (0, 1, ("--worker-devices", "0,1"))):
        said, figures = bench(stage, *small, "--device", device, *options)
        for load in ("products", "memory"):
            assert figures[f"{load}, attached, idle"]["ratio"] > 0, options
            assert figures[f"{load}, updates, direct: bytes updated"]["value"]["min"] > 0, options
        assert figures["bytes compared"]["number"] == 4 * 5 * (1 << 20), options
        assert figures["bytes wrong"]["number"] == 0, options
        where = f"load {device}, trainer 0, workers 0,1"
        assert said["machine"].get("GPUs", where) == where, (options, said)
        assert ("GPUs" in said["machine"]) == ("--worker-devices" in options), options
        contexts = sorted(broker_contexts(plan))
        if "--worker-devices" in options:
            # In no direct update has the broker a context on a GPU that has workers alone.
            assert contexts == 5 * [1] + 5 * [2], (options, contexts)
        for path in plan.glob("*.cublas"):
            counts = scene.counts(path)
            assert counts[f"steps.{device}"] > 0 and f"steps.{other}" not in counts, counts
            path.unlink()
    for options, who in ((("--trainer-device", 7), "the trainer"),
                         (("--worker-devices", "0,7"), "a worker"), (("--device", 7), "")):
        result = stage.run("strew-bench", *small, *options, seconds=120)
        assert result.returncode in (1, 3) and who in result.stderr and \
            "no GPU 7" in result.stderr, (options, result)
        for kept in re.findall(r"what the brokers said is in (\S+)", result.stderr):
            shutil.rmtree(kept)


def test_shapes(stage):
    """The published numbers of tensors and bytes, and pieces that tile every parameter.

    DeepSeek-V3 without its next-token-prediction layer and the scales of its fp8 weights, all in
    bf16: the 671,026,419,200 parameters of the main model, 58 x 256 of them f32.
    """
    known = {"llama-3.1-8b": (291, 16_060_522_496), "llama-3.1-70b": (723, 141_107_412_992),
             "qwen2.5-0.5b": (290, 988_065_536), "qwen3-30b-a3b": (18867, 61_064_245_248),
             "deepseek-v3": (45395, 2 * 671_026_419_200 + 2 * 58 * 256)}
    for name, (tensors, size) in known.items():
        said = json.loads(stage.run("strew-bench", "shapes", "--model", MODELS / f"{name}.json",
                                    "--json", seconds=120).stdout)
        assert len(said["tensors"]) == tensors, name
        width = {"bf16": 2, "f32": 4}
        assert sum(volume(one["shape"]) * width[one["dtype"]] for one in said["tensors"]) == size, \
            name
        taken = [0] * tensors
        for rank in said["ranks"]:
            filled = [0] * len(rank["parameters"])
            for piece in rank["pieces"]:
                filled[piece["parameter"]] += volume(piece["extent"])
                taken[piece["tensor"]] += volume(piece["extent"])
            assert filled == [volume(one["shape"]) for one in rank["parameters"]], name
        for one, count in zip(said["tensors"], taken):
            assert count % volume(one["shape"]) == 0 and count > 0, one


def volume(shape):
    product = 1
    for extent in shape:
        product *= extent
    return product


def test_usage(stage):
    for argv, names in ((("update",), "--model or --cut"), (("update", "--cut", "0"), "--cut 0"),
                        (("update", "--cut", "1", "--path", "x"), "--path"),
                        (("idle", "--path", "disk"), "--path disk"),
                        (("update", "--cut", "1", "--device", "GPU-1", "--path", "wire",
                          "--node-device", "1"), "whether they are one"),
                        (("update", "--cut", "1", "--samples", "4"), "--samples 4"),
                        (("register", "--pieces", "2000000"), "1000000 pieces"),
                        (("shapes",), "--model"), (("push",), "--directory"),
                        (("copy", "--least", "1M", "--most", "4K"), "--least"),
                        (("copy", "--row", "8K"), "--row"), (("none",), "none"),
                        ((), "subcommand")):
        result = stage.run("strew-bench", *argv)
        assert result.returncode == 2 and names in result.stderr, (argv, result)
    for argv in ((), ("update",), ("copy",), ("push",), ("register",), ("idle",), ("shapes",)):
        result = stage.run("strew-bench", *argv, "--help")
        assert result.returncode == 0 and result.stdout.startswith("Usage: strew-bench"), argv
    result = stage.run("strew-bench", "update", "--backend", "host", "--device", 0, "--cut", 1)
    assert result.returncode == 2 and "--device 0" in result.stderr, result
    # What ends before a broker was started points to no log.
    result = stage.run("strew-bench", "update", "--backend", "host", "--cut", 2, "--bytes", "1M",
                       "--worker-devices", "0,1")
    assert result.returncode in (1, 3) and "no device 1" in result.stderr, result
    assert "what the brokers said" not in result.stderr, result.stderr
    result = stage.run("strew-bench", "push", "--backend", "host", "--model",
                       MODELS / "llama-3.1-8b.json", "--layers", 1, "--directory", "/proc/nope")
    assert result.returncode == 1 and "/proc/nope" in result.stderr, result
    assert "what the brokers said" not in result.stderr, result.stderr
    result = stage.run("strew-bench", "shapes", "--model", stage.dir / "none.json")
    assert result.returncode == 1 and "none.json" in result.stderr, result


if __name__ == "__main__":
    scene.main(globals())
