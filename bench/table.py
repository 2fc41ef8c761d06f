#!/usr/bin/env python3
"""The table of docs/results.md, one command: every figure of the bench beside what is wanted of it.

    bench/table.py [--gpus 1|2] [--only ROW,...] [--bin DIR] [--out DIR] [--seconds S]

Runs strew-bench for each row, one after another, with programs that were built before; keeps each
run's JSON and log in the out folder, and writes table.md there. On one H100 all rows of one GPU
take about twelve minutes. Ends with 1 if a run failed or a byte was wrong; a figure that misses
what is wanted is marked, and is no failure: it is what was measured.
"""

import argparse
import dataclasses
import glob
import json
import math
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
LLAMA = ["--model", "bench/models/llama-3.1-8b.json"]
QWEN = ["--model", "bench/models/qwen3-30b-a3b.json"]
WIRE2 = ["--path", "wire", "--device", "0", "--node-device", "1", "--worker-devices", "0,1"]
NODE2 = ["--device", "0", "--worker-devices", "0,1"]
SLICE_S = 1.5e-3  # above: the GPU was another process's for a time slice
FEW = 5  # samples that say nothing


@dataclasses.dataclass
class Figure:
    """value: from the runs' figures by name; limit: (sign, number), None where it is reported."""

    text: str
    value: Callable[[list[dict]], float]
    shown: Callable[[list[dict]], str]
    limit: tuple[str, float] | None = None
    unit: str = ""

    def good(self, value: float) -> bool:
        """True where nothing is wanted of it."""
        if self.limit is None:
            return True
        sign, number = self.limit
        return value >= number if sign == ">=" else value <= number

    @property
    def wanted(self) -> str:
        """As the table says it."""
        if self.limit is None:
            return "reported"
        return f"{'' if self.limit[0] == '>=' else 'at most '}{self.limit[1]:g}{self.unit}"


@dataclasses.dataclass
class Row:
    """Commands of strew-bench that are run together, and what is read from them."""

    name: str
    runs: list[list[str]]
    figures: list[Figure]


def seconds(value: float) -> str:
    """With a unit that suits."""
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if abs(value) * scale >= 1:
            return f"{value * scale:.4g} {unit}"
    return f"{value * 1e6:.3g} us"


def spread(time_: dict) -> str:
    """Median, least and most."""
    return f"{seconds(time_['median'])} ({seconds(time_['min'])} to {seconds(time_['max'])})"


def ratio(name: str, text: str, limit: float | None, run: int = 0) -> Figure:
    """Raw ÷ strew."""
    def shown(runs: list[dict]) -> str:
        figure = runs[run][name]
        if "time" not in figure:
            return f"{figure['value']['median']:.4g} steps a second, {figure['raw_name']} " \
                f"{figure['raw']['median']:.4g}"
        return (f"{spread(figure['time'])} beside {seconds(figure['raw']['median'])}, "
                f"{figure['raw_name']}")
    return Figure(text, lambda runs: runs[run][name]["ratio"], shown,
                  None if limit is None else (">=", limit))


def latency(name: str, text: str, most_us: float | None) -> Figure:
    """A time in microseconds."""
    return Figure(text, lambda runs: runs[0][name]["time"]["median"] * 1e6,
                  lambda runs: spread(runs[0][name]["time"]),
                  None if most_us is None else ("<=", most_us), " us")


def like(figures: dict) -> list[tuple[list[float], int]]:
    """(samples to compare, of how many) of the update, and of the raw way.

    Two processes that share a GPU take turns on it: on one GPU a sample is short, or it has waited
    for a slice of time, and medians of all mix the two as they fall. So short ones are compared
    with short ones, and all with all where the raw way has hardly any. Where updates alone have
    hardly any, all of them count, and the difference shows it. NCCL's three raw figures are one
    and the same here, as 4 KiB are one piece of any length.
    """
    raw = [sample for name, figure in figures.items() if name.startswith("NCCL, ")
           for sample in figure["time"]["samples"]] or figures["update"]["raw"]["samples"]
    both = [figures["update"]["time"]["samples"], raw]
    short = [[sample for sample in samples if sample < SLICE_S] for samples in both]
    if len(short[1]) < FEW:
        return [(samples, len(samples)) for samples in both]
    return [(one if len(one) >= FEW else samples, len(samples))
            for one, samples in zip(short, both)]


def beyond_raw(text: str, most_us: float) -> Figure:
    """What an update takes more than the raw figures beside it, like compared with like."""
    def value(runs: list[dict]) -> float:
        (update, _), (raw, _) = like(runs[0])
        return (statistics.median(update) - statistics.median(raw)) * 1e6

    def shown(runs: list[dict]) -> str:
        (update, updates), (raw, raws) = like(runs[0])
        return (f"{seconds(statistics.median(update))}, {len(update)} of {updates} updates, beside "
                f"{seconds(statistics.median(raw))}, {len(raw)} of {raws} raw")
    return Figure(text, value, shown, ("<=", most_us), " us")


PAUSE = "pause of the held gate, slowest worker"


def pause_shown(run: int = 0) -> Callable[[list[dict]], str]:
    """Beside the plain copy of the largest worker's bytes."""
    return lambda runs: (f"{spread(runs[run][PAUSE]['time'])} beside "
                         f"{seconds(runs[run][PAUSE]['raw']['median'])}")


def pause(text: str, most: float | None = 1.0, run: int = 0) -> Figure:
    """A held gate's pause ÷ (1.3 raw copies + 1 ms)."""
    def value(runs: list[dict]) -> float:
        figure = runs[run][PAUSE]
        return figure["time"]["median"] / (1.3 * figure["raw"]["median"] + 1e-3)
    return Figure(text, value, pause_shown(run), None if most is None else ("<=", most))


def pause_time(text: str) -> Figure:
    """The pause itself."""
    return Figure(text, lambda runs: runs[0][PAUSE]["time"]["median"] * 1e3, pause_shown(),
                  None, " ms")


def first_over_second(text: str, most: float | None) -> Figure:
    """The same update in two ways, a run each."""
    def shown(runs: list[dict]) -> str:
        return " and ".join(spread(run["update"]["time"]) for run in runs)
    return Figure(text, lambda runs: runs[0]["update"]["time"]["median"] /
                  runs[1]["update"]["time"]["median"], shown,
                  None if most is None else ("<=", most))


def memory(text: str, most_mib: float | None) -> Figure:
    """Device memory of a broker on the trainer's GPU."""
    name, taken, nccl = ("device memory of a broker besides slots and shadows",
                         "device memory taken by brokers, slots and shadows",
                         "device memory of a plain NCCL rank besides its buffer")

    def shown(runs: list[dict]) -> str:
        beside = f"; plain NCCL takes {runs[0][nccl]['number']:.0f} MiB for itself, besides " \
            "buffer and context" if nccl in runs[0] else ""
        return (f"{runs[0][taken]['number']:.0f} MiB taken there in all, slots and shadows "
                f"included{beside}")
    return Figure(text, lambda runs: runs[0][name]["number"], shown,
                  None if most_mib is None else ("<=", most_mib), " MiB")


def memory_away(text: str, most_mib: float) -> Figure:
    """Device memory of a broker on a worker's GPU that is not the trainer's."""
    name = "device memory taken by brokers on another GPU than the trainer's"
    return Figure(text, lambda runs: runs[0][name]["number"], lambda _: "taken there in all",
                  ("<=", most_mib), " MiB")


def rate(run: dict, load: str, phase: str) -> float:
    """GB/s of the updates beside an engine."""
    return run[f"{load}, {phase}: bytes updated"]["value"]["median"] / 1e9


def engine(phase: str, text: str, least: float | None, run: int = 0) -> list[Figure]:
    """Both loads of an engine beside strew."""
    return [ratio(f"{load}, {phase}", f"{text}, {what}", least, run)
            for load, what in (("products", "products"), ("memory", "memory-bound"))] + (
        [] if phase == "attached, idle" else
        [Figure(f"{text}: bytes a second, products; memory-bound",
                lambda runs: rate(runs[run], "products", phase),
                lambda runs: f"GB/s; {rate(runs[run], 'memory', phase):.3g}")])


def tails(text: str, run: int = 0) -> list[Figure]:
    """The 99th percentile of an engine's step, of both loads; the figure is of direct updates."""
    def tail(load: str, what: str) -> Figure:
        def median(runs: list[dict], phase: str) -> float:
            return runs[run][f"{load}, {phase}: 99th percentile of a step"]["time"]["median"]

        def shown(runs: list[dict]) -> str:
            return (f"alone {seconds(median(runs, 'alone'))}, beside an idle strew "
                    f"{seconds(median(runs, 'attached, idle'))}, in staged updates "
                    f"{seconds(median(runs, 'updates, staged'))}")
        return Figure(f"{text}, {what}", lambda runs: median(runs, "updates, direct") * 1e6, shown,
                      None, " us")
    return [tail("products", "products"), tail("memory", "memory-bound")]


def idle_row(name: str, where: str, options: list[str], cublas: list[str]) -> Row:
    """An engine-like load."""
    return Row(name, [["idle", *cublas, "--seconds", "1", "--samples", "5", *options]],
               engine("attached, idle", f"engine beside an idle strew{where} ÷ alone", 0.99)
               + engine("updates, direct", f"during updates{where}, direct", None)
               + engine("updates, staged", f"during updates{where}, staged", None)
               + tails(f"99th percentile of a step in direct updates{where}"))


def one_gpu(cublas: list[str], directory: str) -> list[Row]:
    """What one GPU can show."""
    update = "update, beside one kernel over all pieces"
    staged = ["--apply", "staged", "--gate", "held"]
    registered = "2 x 20000 pieces: describe, register and plan"
    return [
        Row("llama", [["update", *LLAMA, "--samples", "31"]],
            [ratio("update", "one broker, Llama-3.1-8B: raw copy ÷ update", 0.90),
             memory("device memory of a broker, besides slots", 1024)]),
        Row("qwen", [["update", *QWEN, "--layers", "16", "--samples", "31"]],
            [ratio("update", "one broker, Qwen3-30B-A3B, 16 layers: raw copy ÷ update", None),
             ratio(update, "… one kernel over all its pieces ÷ update", 0.93)]),
        Row("wire-llama",
            [["update", "--path", "wire", *LLAMA, "--layers", "16", "--samples", "11"]],
            [ratio("update", "two brokers by sockets, Llama, 16 layers: raw NCCL ÷ update", 0.95),
             memory("device memory of a broker with a communicator, besides slots", 1024)]),
        Row("wire-qwen",
            [["update", "--path", "wire", *QWEN, "--layers", "8", "--samples", "11"]],
            [ratio("update", "… Qwen3-30B-A3B, 8 layers", 0.95)]),
        Row("hash", [["update", "--path", "wire", *LLAMA, "--layers", "6", "--samples", "5", *hash_]
                     for hash_ in (["--hash"], [])],
            [first_over_second("two brokers by sockets, Llama, 6 layers: with hashes ÷ without",
                               None)]),
        Row("host-llama",
            [["update", "--path", "host", *LLAMA, "--layers", "24", "--samples", "15"]],
            [ratio("update", "pinned host memory, Llama, 24 layers: pinned copy ÷ update", 0.90)]),
        Row("host-qwen", [["update", "--path", "host", *QWEN, "--layers", "8", "--samples", "15"]],
            [ratio("update", "… Qwen3-30B-A3B, 8 layers", 0.90)]),
        Row("disk", [["push", *LLAMA, "--layers", "8", "--directory", directory, "--samples", "5"]],
            [ratio("strew push, start to end", "disk: plain O_DIRECT reads ÷ strew push", 0.90)]),
        Row("pause", [["update", *staged, "--tp", tp, *LLAMA] for tp in ("1", "2")],
            [pause("pause of a held gate ÷ (1.3 raw copies + 1 ms), TP = 1"),
             pause("… TP = 2 on this one GPU, whose memory two workers' shadows share", None, 1)]),
        Row("shadow-host",
            [["update", *staged, "--shadow", "host", *LLAMA, "--layers", "8", "--samples", "5"]],
            [ratio("update", "shadows in pinned host memory, Llama, 8 layers: raw copy ÷ update",
                   None),
             pause_time("… pause of the held gate")]),
        Row("4k", [["update", "--cut", "1", "--bytes", "4K", "--samples", "100"]],
            [latency("update", "4 KiB within a broker", 300)]),
        Row("wire-4k",
            [["update", "--path", "wire", "--cut", "1", "--bytes", "4K", "--samples", "100"]],
            [beyond_raw("4 KiB across two brokers, beyond raw NCCL; medians of samples below "
                        "1.5 ms, which have not waited for a time slice", 500)]),
        Row("register", [["register", "--pieces", "20000", "--samples", "5"]],
            [Figure("40,000 pieces: describe, register and plan",
                    lambda runs: runs[0][registered]["time"]["median"] * 1e3,
                    lambda runs: spread(runs[0][registered]["time"]), ("<=", 250), " ms")]),
        Row("cut", [["update", "--cut", "18867", "--bytes", "15G", "--samples", "31"],
                    ["update", "--cut", "2", "--bytes", "15G", "--samples", "31"]],
            [first_over_second("15 GB in 18,867 tensors ÷ in 2", 1.05)]),
        idle_row("idle", "", [], cublas),
        idle_row("idle-host", " (host)", ["--path", "host"], cublas),
        idle_row("idle-wire", " (wire)", ["--path", "wire"], cublas),
    ]


def two_gpus(cublas: list[str], _directory: str) -> list[Row]:
    """What needs a link between two."""
    staged = ["--apply", "staged", "--gate", "held", *QWEN, "--layers", "24"]
    return [
        Row("wire-llama", [["update", *WIRE2, *LLAMA, "--samples", "31"]],
            [ratio("update", "two brokers, Llama-3.1-8B: best raw NCCL ÷ update", 0.95),
             memory("device memory of a broker with a communicator, besides slots", None)]),
        Row("wire-qwen", [["update", *WIRE2, *QWEN, "--layers", "24"]],
            [ratio("update", "… Qwen3-30B-A3B, 24 layers", 0.95)]),
        Row("hash", [["update", *WIRE2, *LLAMA, *hash_] for hash_ in (["--hash"], [])],
            [first_over_second("two brokers, Llama-3.1-8B: with hashes ÷ without", None)]),
        Row("node-llama", [["update", *NODE2, *LLAMA, "--samples", "31"]],
            [ratio("update", "one broker, workers on both GPUs, Llama: link ÷ update", 0.95),
             memory("device memory of a broker with a context", 600),
             memory_away("… on a GPU where its only business is workers", 0)]),
        Row("node-qwen", [["update", *NODE2, *QWEN, "--layers", "24"]],
            [ratio("update", "… Qwen3-30B-A3B, 24 layers", 0.92)]),
        Row("host", [["update", "--path", "host", *NODE2, *LLAMA, "--layers", "16"]],
            [ratio("update", "pinned host memory → TP = 2: PCIe ÷ update", 0.90),
             memory_away("device memory of a broker where it feeds workers from host memory",
                         600)]),
        Row("pause", [["update", *WIRE2, *staged]],
            [pause("pause of a held gate ÷ (1.3 raw copies + 1 ms)")]),
        Row("4k", [["update", *WIRE2, "--cut", "1", "--bytes", "4K", "--samples", "100"]],
            [latency("update", "4 KiB across two brokers", 700)]),
        Row("cut", [["update", *WIRE2, "--cut", "18867", "--bytes", "29G"],
                    ["update", *WIRE2, "--cut", "2", "--bytes", "29G"]],
            [first_over_second("31 GB in 18,867 tensors ÷ in 2", 1.05)]),
        Row("idle", [["idle", *cublas, "--seconds", "1", "--samples", "5", "--device", device,
                      "--trainer-device", "0", "--worker-devices", "0,1"] for device in "10"],
            engine("attached, idle", "engine beside an idle strew, on the GPU without the trainer "
                   "÷ alone", 0.99)
            + engine("updates, direct", "during updates there, direct", 0.90)
            + tails("99th percentile of a step in direct updates there")
            + engine("updates, direct", "during updates on the trainer's GPU, direct", None, 1)
            + tails("99th percentile of a step in direct updates on the trainer's GPU", 1)),
    ]


def environment() -> dict[str, str]:
    """Sockets over loopback, and PyTorch's NCCL where there is one: the linker's may be older."""
    known = dict(os.environ)
    known.setdefault("NCCL_SOCKET_IFNAME", "lo")
    if "STREW_NCCL" not in known:
        for path in sys.path:
            found = pathlib.Path(path) / "nvidia/nccl/lib/libnccl.so.2"
            if found.exists():
                known["STREW_NCCL"] = str(found)
    return known


def run(program: pathlib.Path, arguments: list[str], stem: pathlib.Path, limit: float) -> dict:
    """One run's figures by name; raises RuntimeError with what it said."""
    environment_ = environment()
    libraries = [str(program.parent.parent / "lib"), environment_.get("LD_LIBRARY_PATH", "")]
    environment_["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    with open(stem.with_suffix(".json"), "w") as out, open(stem.with_suffix(".log"), "w") as log:
        try:
            code = subprocess.run([str(program), *arguments, "--json"], stdout=out, stderr=log,
                                  cwd=ROOT, env=environment_, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired as late:
            raise RuntimeError(f"not done after {limit:.0f} s") from late
    if code:
        said = stem.with_suffix(".log").read_text().strip().splitlines()
        raise RuntimeError(f"code {code}: {said[-1] if said else 'no word'}")
    said = json.loads(stem.with_suffix(".json").read_text())
    figures = {figure["name"]: figure for figure in said["figures"]}
    figures[""] = said["machine"]
    return figures


def shown_number(value: float) -> str:
    """Three digits behind the point for ratios, none for large numbers."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def measure(row: Row, options: argparse.Namespace, extra: list[str], left: float,
            lines: list[str]) -> str:
    """Runs a row, prints and notes its figures; returns the machine's name, "" if it failed."""
    begin = time.monotonic()
    try:
        runs = [run(options.bin / "strew-bench", [*arguments, *extra],
                    options.out / f"{row.name}-{i}", left) for i, arguments in enumerate(row.runs)]
        values = [(figure, figure.value(runs), figure.shown(runs)) for figure in row.figures]
        if not all(math.isfinite(value) for _, value, _ in values):
            raise RuntimeError("a figure is no number")
    except (OSError, RuntimeError, KeyError, ValueError) as reason:
        print(f"FAILED    {row.name}: {type(reason).__name__}: {reason}", flush=True)
        lines.append(f"| {row.figures[0].text} | {row.figures[0].wanted} | failed: {reason} | |")
        return ""
    for i, (figure, value, shown) in enumerate(values):
        mark = "reported" if figure.limit is None else "ok" if figure.good(value) else "MISSED"
        number = shown_number(value) + figure.unit
        print(f"{mark:8}  {figure.text}: {number} (wanted {figure.wanted}) {shown}", flush=True)
        seen = number if figure.good(value) else f"**{number}**"
        said = "; ".join(f"`{shlex.join(arguments)}`" for arguments in row.runs)
        lines.append(f"| {figure.text} | {figure.wanted} | {seen}: {shown} | "
                     f"{'the same' if i else said} |")
    print(f"          {row.name}: {time.monotonic() - begin:.0f} s", flush=True)
    return ", ".join(f"{key} {runs[0][''][key]}" for key in runs[0][""]
                     if key not in ("model", "way", "layers", "seed", "GPUs"))


def commit() -> str:
    """Of the tree that this file is in; "" where that is in no repository of its own."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True,
                              check=True, timeout=30).stdout.strip()
    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=1, help="whose table (1)")
    parser.add_argument("--only", default="", help="names of rows, by commas (all)")
    parser.add_argument("--list", action="store_true", help="the rows and their commands")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/bin",
                        help="the programs (build/bin)")
    parser.add_argument("--out", type=pathlib.Path, help="of JSON, logs and table.md (a new one)")
    parser.add_argument("--directory", help="a folder on the disk that strew push reads (OUT/disk)")
    parser.add_argument("--backend", choices=("cuda", "host"), help="of all runs")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no row after them")
    return parser.parse_args()


def main() -> int:
    """0, 1 if a run failed, 2 for a bad command line."""
    options = parse()
    found = sorted(glob.glob("/usr/local/cuda*/lib64/libcublas.so.1[0-9]"))
    names = [name for name in options.only.split(",") if name]

    def rows_in(out: pathlib.Path) -> "list[Row]":
        rows = (one_gpu if options.gpus == 1 else two_gpus)(
            ["--cublas", found[-1]] if found and options.backend != "host" else [],
            options.directory or str(out / "disk"))
        return [row for row in rows if not names or row.name in names]

    listed = rows_in(pathlib.Path("OUT"))  # no folder is made before all is known to be in order
    unknown = set(names) - {row.name for row in listed}
    if unknown:
        print(f"table.py: no row {', '.join(sorted(unknown))}; see --list", file=sys.stderr)
        return 2
    if options.list:
        for row in listed:
            print(row.name, *(f"  strew-bench {shlex.join(arguments)}" for arguments in row.runs),
                  sep="\n")
        return 0
    options.out = (options.out or pathlib.Path(tempfile.mkdtemp(prefix="strew-table-"))).resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    options.bin, rows = options.bin.resolve(), rows_in(options.out)
    extra = ["--backend", options.backend] if options.backend else []
    lines, machines, failed, end = [], [], 0, time.monotonic() + options.seconds
    for row in rows:
        if time.monotonic() >= end:
            print(f"left out  {row.name}: the time is over", flush=True)
            continue
        machine = measure(row, options, extra, end - time.monotonic(), lines)
        failed += not machine
        machines += [machine] if machine and machine not in machines else []
    at = commit()
    table = ["; ".join(machines + ([f"commit {at}"] if at else [])), "",
             "| figure | wanted | seen | command: `strew-bench` … |",
             "|-|-|-|-|", *lines, ""]
    (options.out / "table.md").write_text("\n".join(table))
    print("\n".join(machines), f"{options.out}/table.md: {len(rows)} rows, {failed} failed",
          sep="\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
