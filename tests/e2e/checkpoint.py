#!/usr/bin/env python3
"""Compares workers' dumped parameters with a safetensors file, independently of strew.

    checkpoint.py FILE.safetensors CONFIG.json DUMP...

Each DUMP (with DUMP.json beside it) is what `tp_worker --dump` wrote. What a tensor-parallel rank
should hold is computed here once more, in plain Python, from the file and the config alone. Prints
"tensors=N bytes=B mismatches=M" and ends with 0 if M is 0.
"""

import json
import mmap
import struct
import sys

BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2,
         "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


class Checkpoint:
    """A safetensors file: tensors as (dtype, shape, memoryview)."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        (length,) = struct.unpack_from("<Q", self.data)
        self.header = json.loads(bytes(self.data[8:8 + length]))
        self.header.pop("__metadata__", None)
        self.base = 8 + length
        self.used = set()

    def rows(self, name):
        """The tensor as a list of rows, each a memoryview of bytes."""
        entry = self.header[name]
        self.used.add(name)
        begin, end = entry["data_offsets"]
        data = self.data[self.base + begin:self.base + end]
        rows = entry["shape"][0]
        width = len(data) // rows
        return [data[i * width:(i + 1) * width] for i in range(rows)], BYTES[entry["dtype"]]


def part(items, rank, size):
    """The rank's share of a list that divides evenly."""
    share = len(items) // size
    assert share * size == len(items)
    return items[rank * share:(rank + 1) * share]


def heads(rows, count, rank, size):
    """The rows of the rank's heads; with more ranks than heads, neighbours share one."""
    depth = len(rows) // count
    by_head = [rows[i * depth:(i + 1) * depth] for i in range(count)]
    mine = part(by_head, rank, size) if count >= size else [by_head[rank * count // size]]
    return [row for head in mine for row in head]


def columns(rows, element, rank, size):
    result = []
    for row in rows:
        assert len(row) % (size * element) == 0
        share = len(row) // size
        result.append(row[rank * share:(rank + 1) * share])
    return result


FUSED = {  # the end of a fused parameter's stem -> what stands there in each tensor's name
    "attention.self.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
BY_COLUMNS = ("attention.output.dense.weight", "output.dense.weight", "o_proj.weight",
              "down_proj.weight")
BY_ROWS = ("intermediate.dense.weight", "intermediate.dense.bias")
BY_VOCABULARY = ("word_embeddings.weight", "embed_tokens.weight", "lm_head.weight")


def expected(checkpoint, config, name, rank, size, poison):
    """The bytes that the rank's parameter should hold, row by row."""
    stem, _, kind = name.rpartition(".")
    for fused, parts in FUSED.items():
        if not stem.endswith(fused):
            continue
        result = []
        queries = config["num_attention_heads"]
        for index, tensor in enumerate(parts):
            rows, _ = checkpoint.rows(f"{stem[:-len(fused)]}{tensor}.{kind}")
            if len(parts) == 2:
                result += part(rows, rank, size)
            else:
                count = config.get("num_key_value_heads", queries) if index else queries
                result += heads(rows, count, rank, size)
        return result
    rows, element = checkpoint.rows(name)
    if name.endswith(BY_COLUMNS):
        return columns(rows, element, rank, size)
    if name.endswith(BY_ROWS):
        return part(rows, rank, size)
    if name.endswith(BY_VOCABULARY):
        padding = -len(rows) % 64
        return part(rows + [bytes([poison]) * len(rows[0])] * padding, rank, size)
    return rows


def compare(checkpoint, config, dump):
    with open(dump + ".json", encoding="utf-8") as file:
        index = json.load(file)
    with open(dump, "rb") as file:
        memory = file.read()
    at = total = wrong = 0
    for parameter in index["parameters"]:
        want = b"".join(expected(checkpoint, config, parameter["name"], index["rank"],
                                 index["size"], index["poison"]))
        assert parameter["offset"] == at, "the dump's parameters do not follow each other"
        have = memory[at:at + len(want)]
        at += len(want)
        total += len(want)
        if have != want:
            differ = sum(a != b for a, b in zip(have, want)) + len(want) - len(have)
            print(f"rank {index['rank']}: {parameter['name']}: {differ} bytes differ",
                  file=sys.stderr)
            wrong += differ
    if at != len(memory):
        sys.exit(f"{dump}: {len(memory)} bytes, its parameters should have {at}")
    return total, wrong


def main():
    if len(sys.argv) < 4:
        sys.exit("usage: checkpoint.py FILE.safetensors CONFIG.json DUMP...")
    checkpoint = Checkpoint(sys.argv[1])
    with open(sys.argv[2], encoding="utf-8") as file:
        config = json.load(file)
    total = wrong = 0
    for dump in sys.argv[3:]:
        compared, differ = compare(checkpoint, config, dump)
        total += compared
        wrong += differ
    print(f"tensors={len(checkpoint.header)} bytes={total} mismatches={wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
