#!/usr/bin/env python3
"""The same weight update by strew and by the mechanisms that people use now, in one table.

    bench/peers/compare.py --model bench/models/llama-3.1-8b.json --layers 8 --bin build/bin

Needs PyTorch; with --dry-run its CPU build is enough. Each mechanism's module says which public
source it follows. Exit codes: 0 in order, 1 a mechanism failed (wrong bytes too), 2 usage,
3 no GPU, 77 no PyTorch.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import ckpt_engine
import place
import shapes
import strew_bench
import table
import world

NAMES = ("index", "tensor", "packed", "checkpoint-engine", "strew")
RAW_PIECES = (64 << 20, 256 << 20, 1 << 30)
EXIT_SKIP, EXIT_DEVICE, EXIT_USAGE = 77, 3, 2


def options_of(argv):
    parser = argparse.ArgumentParser(
        description="The same weight update by strew and by the mechanisms that people use now.",
        epilog="Exit codes: 0 in order, 1 a mechanism failed (wrong bytes too), 2 usage, 3 no GPU, "
               "77 no PyTorch.")
    parser.add_argument("--model", required=True, metavar="CONFIG",
                        help="a config.json as published (see bench/models/)")
    parser.add_argument("--layers", type=int, default=0, help="the first N layers (default: all)")
    parser.add_argument("--tp", type=int, default=2, help="tensor-parallel workers (default 2)")
    parser.add_argument("--samples", type=int, default=5, help="of each mechanism (default 5)")
    parser.add_argument("--bin", default="build/bin", help="where strew-bench is")
    parser.add_argument("--mechanisms", default=",".join(NAMES), metavar="LIST",
                        help=f"of {','.join(NAMES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--backend", choices=("nccl", "gloo"), default=None)
    parser.add_argument("--dry-run", action="store_true",
                        help="CPU tensors and gloo, one sample: correctness only; without strew "
                             "and checkpoint-engine")
    parser.add_argument("--gpus", type=int, default=0,
                        help="use so many GPUs (default: all; with --dry-run: pretend)")
    parser.add_argument("--bucket", type=int, default=1 << 30, metavar="BYTES",
                        help="of packed (default 1 GiB)")
    parser.add_argument("--path", choices=("wire", "node", "host"), default="wire",
                        help="of strew-bench update (default wire)")
    parser.add_argument("--strew-runs", type=int, default=2,
                        help="runs of strew-bench update, between the others (default 2)")
    parser.add_argument("--strew-options", default="", help="more options for strew-bench update")
    parser.add_argument("--strew-deadline", type=int, default=600, metavar="SECONDS",
                        help="of one run of strew-bench update (default 600)")
    parser.add_argument("--deadline", type=int, default=120, metavar="SECONDS",
                        help="of one sample of a mechanism (default 120)")
    options = parser.parse_args(argv)
    options.wanted = [name for name in options.mechanisms.split(",") if name]
    unknown = [name for name in options.wanted if name not in NAMES]
    if unknown or not options.wanted:
        parser.error(f"--mechanisms {options.mechanisms}: a list of {','.join(NAMES)} is wanted")
    least = 1 if options.dry_run else 5
    options.samples = 1 if options.dry_run else options.samples
    for name, value, low in (("samples", options.samples, least), ("tp", options.tp, 1),
                             ("layers", options.layers, 0), ("gpus", options.gpus, 0),
                             ("bucket", options.bucket, 1), ("strew-runs", options.strew_runs, 1),
                             ("deadline", options.deadline, 1)):
        if value < low:
            parser.error(f"--{name} {value}: at least {low} is wanted")
    if options.dry_run != ((options.backend or ("gloo" if options.dry_run else "nccl")) == "gloo"):
        parser.error("--backend gloo goes with --dry-run, nccl with GPUs")
    options.backend = "gloo" if options.dry_run else "nccl"
    return options


def count_gpus():
    """Asked in a process of its own: this one shall hold no context."""
    done = subprocess.run([sys.executable, "-c",
                           "import torch; print(torch.cuda.device_count())"],
                          capture_output=True, text=True, timeout=120, check=False)
    words = done.stdout.split()
    return int(words[-1]) if done.returncode == 0 and words else 0


def driver_version():
    for path in ("/sys/module/nvidia/version", "/proc/driver/nvidia/version"):
        try:
            first = pathlib.Path(path).read_text(encoding="utf-8").splitlines()[0]
        except (OSError, IndexError):
            continue
        return next((word for word in first.split() if word[0].isdigit()), first)
    return "unknown"


class Comparison:
    def __init__(self, options, directory):
        self.options = options
        text = shapes.load(options.bin, options.model, options.layers, options.tp)
        self.shapes = shapes.parse(text)
        self.directory = pathlib.Path(directory)
        (self.directory / "shapes.json").write_text(text, encoding="utf-8")
        self.rows = {name: table.Row(world.TITLES.get(name, name)) for name in NAMES
                     if name in options.wanted}
        self.update_row = table.Row("checkpoint-engine, update() alone",
                                    note="without registering; as its authors publish")
        pieces = (options.bucket,) if options.dry_run else RAW_PIECES
        self.raws = {piece: table.Row(f"raw broadcast, {table.bytes_text(piece)} pieces")
                     for piece in pieces}
        self.machine = {}
        self.worlds = 0
        self._leave_out()

    def _leave_out(self):
        missing = ckpt_engine.missing()
        for name, row in self.rows.items():
            if self.options.dry_run and name in ("strew", "checkpoint-engine"):
                row.absent = "not in a dry run"
            elif name == "checkpoint-engine" and missing:
                row.absent = missing

    def live(self):
        """What takes samples in a world, raw's pieces as (\"raw\", piece)."""
        names = [(name, None) for name, row in self.rows.items()
                 if name != "strew" and not row.failed and not row.absent]
        return names + [("raw", piece) for piece, row in self.raws.items() if not row.failed]

    def say(self, text):
        print(f"peers: {text}", file=sys.stderr, flush=True)

    def world(self):
        """A world of its own directory, with servers only where they are wanted."""
        self.worlds += 1
        directory = self.directory / str(self.worlds)
        directory.mkdir()
        servers = ("checkpoint-engine", None) in self.live()
        where = place.place(self.options.gpus, self.options.tp, servers)
        settings = {"backend": self.options.backend, "gpus": self.options.gpus,
                    "tp": self.options.tp, "servers": servers, "directory": str(directory),
                    "shapes": str(self.directory / "shapes.json"),
                    "bucket_bytes": self.options.bucket, "deadline": self.options.deadline}
        self.machine["placement"] = where.note
        self.machine["ranks"] = "; ".join(
            f"{what}: {' '.join(where.groups[group])}" for what, group in
            (("raw and index", "receivers"), ("tensor and packed", "workers")))
        return world.World(where, settings)

    def take(self, there, name, piece, counted):
        """One sample; kept if it counts."""
        if name == "raw":
            row, result = self.raws[piece], there.sample("raw", piece_bytes=piece)
        else:
            row, result = self.rows[name], there.sample(name)
        if not counted:
            return
        row.seconds.append(result["seconds"])
        row.verified_bytes = result.get("verified_bytes", 0)
        if "update_seconds" in result:
            self.update_row.seconds.append(result["update_seconds"])
        self.say(f"{row.name}: {table.seconds_text(result['seconds'])}")

    def rounds(self, count):
        """So many samples of everything, in turn; a mechanism that fails ends its world, and the
        others go on in a new one."""
        done = 0
        while done < count and self.live():
            try:
                with self.world() as there:
                    self.machine.update(there.machine)
                    for name, piece in self.live():
                        self.take(there, name, piece, counted=False)
                    while done < count:
                        turn = self.live()
                        first = done % len(turn)
                        for name, piece in turn[first:] + turn[:first]:
                            self.take(there, name, piece, counted=True)
                        done += 1
            except world.MechanismError as error:
                self.fail(error.mechanism, str(error))

    def fail(self, name, reason):
        self.say(f"{name} failed: {reason}")
        for row in self.raws.values() if name == "raw" else [self.rows[name]]:
            row.failed = reason

    def run(self):
        """strew's runs among the rounds of the others."""
        strew = self.rows.get("strew")
        runs = self.options.strew_runs if strew and not strew.absent else 1
        for block in range(runs):
            if strew and not strew.absent and not strew.failed:
                self.say("strew-bench update")
                try:
                    where = place.place(self.options.gpus, self.options.tp)
                    strew_bench.run(self.options, where, strew)
                except strew_bench.StrewError as error:
                    self.fail("strew", str(error))
            rounds = self.options.samples * (block + 1) // runs - (
                self.options.samples * block // runs)
            try:
                self.rounds(rounds)
            except world.WorldError as error:
                for name, _ in self.live():
                    self.fail(name, str(error))

    def result(self):
        about = {"model": f"{self.options.model}, "
                          f"{self.options.layers or 'all'} layers, TP {self.options.tp}",
                 "tensors": len(self.shapes.tensors),
                 "payload": f"{self.shapes.payload_bytes} bytes, "
                            f"{table.bytes_text(self.shapes.payload_bytes)}"}
        if self.options.dry_run:
            about["dry run"] = "CPU tensors and gloo: times mean nothing"
        else:
            about["driver"] = driver_version()
        about.update({key: value for key, value in self.machine.items() if key != "free_bytes"})
        rows = list(self.rows.values())
        rows.sort(key=lambda row: row.name != "strew")
        engine = self.rows.get("checkpoint-engine")
        if engine in rows and self.update_row.seconds and engine.has_figure:
            rows.insert(rows.index(engine) + 1, self.update_row)
        return table.report(about, rows, list(self.raws.values()), self.shapes.payload_bytes)


def compare(options):
    with tempfile.TemporaryDirectory(prefix="strew-peers-") as directory:
        comparison = Comparison(options, directory)
        comparison.run()
        result = comparison.result()
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(table.text(result), end="")
    return 1 if any("failed" in one for one in result["figures"]) else 0


def main(argv):
    options = options_of(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if importlib.util.find_spec("torch") is None:
        print("compare.py: PyTorch is not installed: skipped", file=sys.stderr)
        return EXIT_SKIP
    if not options.dry_run:
        options.gpus = min(options.gpus or 1 << 30, count_gpus())
        if options.gpus == 0:
            print("compare.py: no GPU that PyTorch can use; --dry-run needs none", file=sys.stderr)
            return EXIT_DEVICE
    options.gpus = options.gpus or 1
    try:
        return compare(options)
    except shapes.ShapesError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return EXIT_USAGE if not os.path.exists(options.model) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
