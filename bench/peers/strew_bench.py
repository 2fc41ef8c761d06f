"""strew's own figure: what `strew-bench update` measures in the same run, for the same shapes.

The only module that knows that program's options and its JSON: {"figures": [{"name": "update",
"time": {"samples": [...]}, "raw": {"samples": [...]}, "bytes": ...}]}. It starts its own trainer,
brokers and workers, verifies their bytes, and ends; so its runs stand before and between the
samples of the others, while none of their processes holds GPU memory.
"""

import json
import shlex
import subprocess

FIGURE = "update"


class StrewError(Exception):
    pass


def devices(place, path):
    """Options that put strew's processes where the mechanisms have theirs: trainer and lead on GPU
    0, workers on their own, the joining broker beside the first receiver."""
    if place.gpus == 1:
        return []
    workers = [p.gpu for p in place.of("worker")]
    argv = ["--device", 0, "--worker-devices", ",".join(map(str, workers))]
    if path == "wire":
        argv += ["--node-device", place.of("receiver")[0].gpu]
    return argv


def command(options, place):
    argv = [f"{options.bin}/strew-bench", "update", "--model", options.model, "--tp", options.tp,
            "--path", options.path, "--apply", "direct", "--samples", max(5, options.samples),
            "--json"]
    argv += devices(place, options.path)
    if options.layers:
        argv += ["--layers", options.layers]
    return [str(arg) for arg in argv + shlex.split(options.strew_options)]


def parse(printed):
    """(samples, samples of its raw figure, bytes, note) of the update figure."""
    try:
        result = json.loads(printed)
        found = next((one for one in result["figures"] if one["name"] == FIGURE), None)
        if found is None:
            names = ", ".join(one["name"] for one in result["figures"])
            raise StrewError(f"no figure \"{FIGURE}\" among: {names}")
        seconds = [float(s) for s in found["time"]["samples"]]
        raw = [float(s) for s in found.get("raw", {}).get("samples", [])]
        size = int(found.get("bytes", 0))
    except (ValueError, KeyError, TypeError) as error:
        raise StrewError(f"strew-bench update printed what is not understood: {error!r}") from error
    if not seconds or min(seconds) <= 0:
        raise StrewError("strew-bench update printed no samples")
    note = f"its own raw: {found['raw_name']}" if raw and "raw_name" in found else ""
    return seconds, raw, size, note


def run(options, place, row):
    """One run; adds its samples to the row. Raises StrewError."""
    argv = command(options, place)
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False,
                              timeout=options.strew_deadline, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StrewError(f"{' '.join(argv[:2])}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or "nothing on stderr").splitlines()[-1]
        raise StrewError(f"strew-bench update, exit code {done.returncode}: {said}")
    seconds, raw, size, note = parse(done.stdout)
    row.seconds += seconds
    row.own_raw += raw
    row.bytes = size
    shown = [word for word in argv[1:] if word not in ("--json",)]
    row.note = f"strew-bench {' '.join(shown)}" + (f"; {note}" if note else "")
