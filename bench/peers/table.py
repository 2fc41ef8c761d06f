"""Rows of a comparison, as a table for people and as JSON like strew-bench's own."""

import dataclasses
import statistics


@dataclasses.dataclass
class Row:
    name: str
    seconds: list = dataclasses.field(default_factory=list)
    note: str = ""
    failed: str = ""           # why it has no figure; makes the exit code 1
    absent: str = ""           # why it was not run; does not
    verified_bytes: int = 0    # in the workers, after each sample
    bytes: int = 0             # of payload; 0: the model's
    own_raw: list = dataclasses.field(default_factory=list)  # raw of its own run, strew-bench's

    @property
    def median(self):
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def has_figure(self):
        return bool(self.seconds) and not self.failed and not self.absent


def of_samples(seconds):
    return {"unit": "s", "median": statistics.median(seconds), "min": min(seconds),
            "max": max(seconds), "samples": seconds}


def best(rows):
    """The row with the least median, None where none has one."""
    measured = [row for row in rows if row.has_figure]
    return min(measured, key=lambda row: row.median) if measured else None


def figure(row, payload_bytes, strew, raw):
    """One figure of the JSON object. ratio: raw's median over its own, as everywhere in
    strew-bench; times_strew: its median over strew's."""
    out = {"name": row.name}
    if row.note:
        out["note"] = row.note
    if row.failed or row.absent:
        out["failed" if row.failed else "absent"] = row.failed or row.absent
    if not row.has_figure:
        return out
    size = row.bytes or payload_bytes
    out.update(time=of_samples(row.seconds), bytes=size, gb_per_s=size / row.median / 1e9)
    if row.verified_bytes:
        out["verified_bytes"] = row.verified_bytes
    if strew:
        out["times_strew"] = row.median / strew.median
    if raw:
        out.update(raw_name=raw.name, raw=of_samples(raw.seconds), ratio=raw.median / row.median)
    if row.own_raw:
        out.update(own_raw=of_samples(row.own_raw),
                   own_ratio=statistics.median(row.own_raw) / row.median)
    return out


def report(machine, rows, raws, payload_bytes):
    """The whole JSON object. rows in the order of the table; the first may be strew's."""
    raw = best(raws)
    strew = next((row for row in rows if row.name == "strew" and row.has_figure), None)
    figures = [figure(row, payload_bytes, strew, raw) for row in raws + rows]
    return {"bench": "peers", "machine": machine, "figures": figures}


def seconds_text(seconds):
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.3f} s"


def bytes_text(size):
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def line(one):
    """A figure as a line of the table."""
    own = f"{one['own_ratio']:.3f} against its own raw" if "own_ratio" in one else ""
    note = "; ".join(part for part in (own, one.get("note", "")) if part)
    for word in ("failed", "absent"):
        if word in one:
            text = f"{'failed: ' if word == 'failed' else ''}{one[word]}"
            return f"{one['name']:<36} {text}"
    time = one["time"]
    spread = f"{seconds_text(time['min'])}..{seconds_text(time['max'])}"
    times = f"{one['times_strew']:.2f}" if "times_strew" in one else "-"
    ratio = f"{one['ratio']:.3f}" if "ratio" in one else "-"
    verified = bytes_text(one["verified_bytes"]) if "verified_bytes" in one else "-"
    return (f"{one['name']:<36} {seconds_text(time['median']):>11} {spread:>25} "
            f"{one['gb_per_s']:>8.2f} {times:>8} {ratio:>8} {verified:>10}  {note}").rstrip()


def text(result):
    lines = ["strew-bench peers"]
    lines += [f"  {key:<16} {value}" for key, value in result["machine"].items()]
    lines += ["", f"{'mechanism':<36} {'median':>11} {'spread':>25} {'GB/s':>8} {'x strew':>8} "
                  f"{'raw/it':>8} {'verified':>10}  note"]
    lines += [line(one) for one in result["figures"]]
    lines += ["", "x strew: its median over strew's. raw/it: the best raw median over its own "
                  "(1: wire speed).",
              "verified: bytes of the workers' parameters compared after each sample."]
    return "\n".join(lines) + "\n"
