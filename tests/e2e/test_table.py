"""bench/table.py: its figures are those of strew-bench, and a run that fails is said."""

import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys

import scene
from test_bench import bench, on_gpus

TABLE = pathlib.Path(__file__).resolve().parents[2] / "bench" / "table.py"


def load_table():
    spec = importlib.util.spec_from_file_location("bench_table", TABLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_compares_like_with_like(stage):
    """Samples of 4 KiB that waited for a slice of the GPU's time are not mixed with the others."""
    del stage
    module = load_table()
    figure = module.beyond_raw("", 500)

    def seen(updates, raws):
        runs = [{"update": {"time": {"samples": updates}, "raw": {"samples": [9]}},
                 **{f"NCCL, {i}": {"time": {"samples": raw}} for i, raw in enumerate(raws)}}]
        return figure.value(runs), figure.shown(runs)

    fast, slow = [0.31e-3] * 30, [2.5e-3] * 70
    # Medians of all would say 0.83 - 2.5 ms, and nothing could be too slow for that.
    value, shown = seen([0.83e-3] * 60 + [3.3e-3] * 40, [fast + slow, slow, fast])
    assert abs(value - 520) < 1e-6 and not figure.good(value), value
    assert shown == "830 us, 60 of 100 updates, beside 310 us, 60 of 200 raw", shown
    # Updates that are never fast count all.
    value, shown = seen([1.9e-3] * 50, [fast + slow])
    assert abs(value - 1590) < 1e-6 and "50 of 50 updates, beside 310 us, 30 of 100" in shown, shown
    # Where the raw way is never fast, all stand beside all.
    value, shown = seen([0.8e-3] * 2 + [2.6e-3] * 9, [slow])
    assert abs(value - 100) < 1e-6 and "11 of 11 updates, beside 2.5 ms, 70 of 70" in shown, shown


def test_reads_one_gpu(stage):
    """The figures of rows whose models are too large here, out of small runs."""
    module = load_table()
    rows = {row.name: row for row in module.one_gpu([], "")}
    staged = ("--backend", "host", "--cut", 3, "--bytes", "1M", "--samples", 5, "--gate", "held",
              "--apply", "staged")
    runs = [bench(stage, "update", *staged, "--tp", tp)[1] for tp in (1, 2)]
    for run, (figure, most) in enumerate(zip(rows["pause"].figures, (("<=", 1.0), None))):
        pause = runs[run]["pause of the held gate, slowest worker"]
        wanted = pause["time"]["median"] / (1.3 * pause["raw"]["median"] + 1e-3)
        assert figure.limit == most and figure.value(runs) == wanted, figure
        assert module.spread(pause["time"]) in figure.shown(runs), figure.shown(runs)
    runs = [bench(stage, "update", *staged, "--shadow", "host")[1]]
    ratio, pause = rows["shadow-host"].figures
    assert ratio.value(runs) == runs[0]["update"]["ratio"] and not ratio.limit, ratio
    assert pause.value(runs) > 0 and pause.unit == " ms" and not pause.limit, pause
    runs = [bench(stage, "update", "--backend", "host", "--path", "wire", "--cut", 3, "--bytes",
                  "1M", "--samples", 5)[1]]
    figure = rows["wire-llama"].figures[1]
    assert figure.value(runs) == 0 and figure.limit == ("<=", 1024), figure  # no GPU's memory here
    runs = [bench(stage, "idle", "--backend", "host", "--seconds", 0.05, "--bytes", "1M",
                  "--samples", 5)[1]]
    tails = rows["idle"].figures[-2:]
    for load, figure in zip(("products", "memory"), tails):
        times = [runs[0][f"{load}, {phase}: 99th percentile of a step"]["time"]["median"]
                 for phase in ("updates, direct", "alone", "attached, idle", "updates, staged")]
        assert figure.value(runs) == times[0] * 1e6, figure
        assert all(module.seconds(time) in figure.shown(runs) for time in times[1:]), times


def test_reads_two_gpus(stage):
    """The figures of rows that need a link, out of small runs on the stand-in."""
    on_gpus(stage, 2)
    module = load_table()
    rows = {row.name: row for row in module.two_gpus([], "")}
    small = ("--backend", "cuda", "--bytes", "1M", "--samples", 5)

    def runs(row, *options):
        """Its commands with the models cut small, the rest as it is."""
        keep = []
        for command in row.runs:
            words = [word for i, word in enumerate(command) if not {command[i - 1], word} &
                     {"--model", "--layers", "--samples", "--bytes", "--cut", "--seconds"}]
            keep.append(bench(stage, *words, *small, *options)[1])
        return keep

    seen = runs(rows["node-llama"], "--cut", 3)
    link, context, away = rows["node-llama"].figures
    assert link.value(seen) == seen[0]["update"]["ratio"] and link.limit == (">=", 0.95), link
    assert "copy to the peer" in link.shown(seen), link.shown(seen)
    assert context.limit == ("<=", 600) and context.value(seen) == \
        seen[0]["device memory of a broker besides slots and shadows"]["number"], context
    assert away.limit == ("<=", 0) and away.value(seen) == \
        seen[0]["device memory taken by brokers on another GPU than the trainer's"]["number"], away
    seen = runs(rows["host"], "--cut", 3)
    away = rows["host"].figures[1]
    assert away.limit == ("<=", 600) and away.value(seen) == 0, away
    cut = rows["cut"]
    assert [command[command.index("--cut") + 1] for command in cut.runs] == ["18867", "2"]
    assert all(command[-2:] == ["--bytes", "29G"] for command in cut.runs), cut
    assert 31e9 < 29 << 30 < 31.5e9 and "31 GB" in cut.figures[0].text, cut
    idle = rows["idle"]
    seen = runs(idle, "--seconds", 0.02)
    limits = [(figure.text.rsplit(",", 1)[0], figure.limit) for figure in idle.figures]
    for run, (phase, text, limit) in (
            (0, ("attached, idle", "engine beside an idle strew, on the GPU without the trainer "
                 "÷ alone", (">=", 0.99))),
            (0, ("updates, direct", "during updates there, direct", (">=", 0.90))),
            (1, ("updates, direct", "during updates on the trainer's GPU, direct", None))):
        assert limits.count((text, limit)) == 2, limits
        for figure in idle.figures:
            load = figure.text.rsplit(", ", 1)[1].split("-")[0]
            if figure.text.startswith(text + ", "):
                assert figure.value(seen) == seen[run][f"{load}, {phase}"]["ratio"], figure
    for run, where in enumerate(("there", "on the trainer's GPU")):
        p99, = (figure for figure in idle.figures if figure.text ==
                f"99th percentile of a step in direct updates {where}, products")
        assert p99.value(seen) == 1e6 * seen[run][
            "products, updates, direct: 99th percentile of a step"]["time"]["median"], p99
        rate, = (figure for figure in idle.figures if figure.text.startswith(
            f"during updates {where}, direct: bytes a second"))
        assert rate.value(seen) == seen[run][
            "products, updates, direct: bytes updated"]["value"]["median"] / 1e9, rate


def test_memory_of_plain_nccl(stage):
    """Its buffer and its context are no part of it, and two ranks on a GPU share what was taken."""
    on_gpus(stage, 2)
    stage.env["STANDIN_NCCL_MEMORY"] = str(48 << 20)
    module = load_table()
    figure = {row.name: row for row in module.two_gpus([], "")}["wire-llama"].figures[1]
    # The stand-in counts memory in each process by itself, so that of two ranks on one GPU only
    # the first is seen.
    for device, most in ((1, 48), (0, 24)):
        _, figures = bench(stage, "update", "--backend", "cuda", "--path", "wire", "--cut", 3,
                           "--bytes", "5M", "--samples", 5, "--node-device", device)
        own = figures["device memory of a plain NCCL rank besides its buffer"]
        assert own["number"] == most and own["unit"] == "MiB", own
        assert f"plain NCCL takes {most} MiB for itself" in figure.shown([figures]), figure
    _, figures = bench(stage, "update", "--backend", "cuda", "--cut", 3, "--bytes", "5M",
                       "--samples", 5)
    assert "plain NCCL" not in figure.shown([figures]) and not any(
        "plain NCCL" in name for name in figures), figures


def table(stage, *argv, env=None):
    return subprocess.run([sys.executable, TABLE, "--backend", "host", "--bin", stage.bin, *argv],
                          capture_output=True, text=True, timeout=120, check=False,
                          env={**stage.env, **(env or {})})


def test_runs(stage):
    """Its figures are those of the runs' own files, and a run that fails is said."""
    out = stage.dir / "table"
    result = table(stage, "--only", "4k,wire-4k", "--out", out)
    assert result.returncode == 0, result
    lines = [line for line in (out / "table.md").read_text().splitlines() if "4 KiB" in line]
    assert len(lines) == 2, lines
    git = subprocess.run(["git", "-C", scene.ROOT, "rev-parse", "--short", "HEAD"], text=True,
                         capture_output=True, check=False)
    head = (out / "table.md").read_text().splitlines()[0]
    known = (scene.ROOT / ".git").exists() and git.returncode == 0
    assert (f"; commit {git.stdout.strip()}" in head) if known else ("commit" not in head), head
    for name, line in zip(("4k-0", "wire-4k-0"), lines):
        figures = {f["name"]: f for f in json.loads((out / f"{name}.json").read_text())["figures"]}
        update = figures["update"]
        wanted = statistics.median(update["time"]["samples"])
        if name == "wire-4k-0":
            short = [sample for sample in update["time"]["samples"] if sample < 1.5e-3]
            short = short if len(short) >= 5 else update["time"]["samples"]
            wanted = statistics.median(short) - statistics.median(update["raw"]["samples"])
            assert f"{len(short)} of 100 updates" in line, (line, len(short))
        number = f"{wanted * 1e6:.0f}" if wanted >= 10e-6 else f"{wanted * 1e6:.3f}"
        assert f"| {number} us:" in line.replace("**", ""), (line, wanted)
    (stage.dir / "tmp").mkdir()
    result = table(stage, "--only", "none", env={"TMPDIR": str(stage.dir / "tmp")})
    assert result.returncode == 2 and "none" in result.stderr, result
    assert not list((stage.dir / "tmp").iterdir())
    result = table(stage, "--only", "4k", "--bin", TABLE.parent, "--out", out)
    assert result.returncode == 1 and "FAILED    4k" in result.stdout, result


if __name__ == "__main__":
    scene.main(globals())
