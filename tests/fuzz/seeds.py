#!/usr/bin/env python3
"""Writes the seeds of the fuzzers' corpora: valid things, for mutations to start from.

usage: seeds.py [TARGET …]    (all; into corpus/TARGET/seed-*)
"""
import json
import pathlib
import struct
import sys

CORPUS = pathlib.Path(__file__).parent / "corpus"


def pack(value):
    """msgpack of ints, strs, bytes, lists and dicts, as strew writes them."""
    if isinstance(value, int):
        if value < 0x80:
            return bytes([value])
        for code, form, limit in ((0xCC, ">B", 8), (0xCD, ">H", 16), (0xCE, ">I", 32)):
            if value < 1 << limit:
                return bytes([code]) + struct.pack(form, value)
        return b"\xcf" + struct.pack(">Q", value)
    if isinstance(value, str):
        raw = value.encode()
        return (bytes([0xA0 + len(raw)]) if len(raw) < 32 else b"\xd9" + bytes([len(raw)])) + raw
    if isinstance(value, bytes):
        return b"\xc5" + struct.pack(">H", len(value)) + value
    if isinstance(value, list):
        head = bytes([0x90 + len(value)]) if len(value) < 16 else b"\xdc" + struct.pack(">H", len(value))
        return head + b"".join(pack(item) for item in value)
    items = b"".join(pack(key) + pack(item) for key, item in value.items())
    return (bytes([0x80 + len(value)]) if len(value) < 16 else b"\xde" + struct.pack(">H", len(value))) + items


def frame(kind, fields, serial=1, fds=0):
    payload = pack(fields)
    return b"STRW" + struct.pack("<HHIIQ", 1, kind, len(payload), fds, serial) + payload


HELLO = {"protocol": 1, "role": 1, "pid": 4123, "pid_namespace": 4026531836, "library": "0.1.0"}
GROUP = {"node": 0, "replica": 1, "part": 0, "outcome": 2, "state": 6, "text": "late"}
REPORT = {"version": 7, "outcome": 1, "text": ""} | {
    key: 9 for key in ("tensors", "unwanted", "bytes", "wire_bytes", "wait_ns", "accept_ns", "move_ns",
                       "commit_ns", "total_ns", "gather_ns", "local_ns", "wire_ns", "scatter_ns")
} | {"groups": [GROUP, GROUP]}
ALLOCATION = {"index": 0, "kind": 1, "base": 4096, "size": 65536, "buffer_id": 0, "uuid": bytes(16),
              "ipc": bytes(64), "first_chunk": 0, "chunks": 1, "chunk_bytes": [65536]}


def frames():
    hello = frame(1, HELLO, fds=1)
    yield "hello", b"\x00" + b"\x06" + hello[:1] + b"\x00" + hello[1:2] + b"\x01" + hello[2:]
    yield "stream", b"\x01\x01" + frame(60, {}) + frame(44, REPORT, 0) + frame(3, {"code": 7, "text": "busy"})
    yield "decode-report", b"\x02\x2c" + pack(REPORT)
    yield "decode-allocation", b"\x02\x0b" + pack(ALLOCATION)
    yield "decode-part", b"\x02\x0c" + pack({"of": 1, "number": 0, "bytes": b"abc", "unknown": [{"a": 1}]})
    for number in range(63):
        yield f"made-{number}", bytes([3, number, 3, 0, 170, 1, 5, 2, 4, 1, 2, 3, 4, 20, 0, 0xC0])


def layout(tensors, parameters, pieces):
    return b"".join(map(pack, [["strew-layout", 1, len(tensors), len(parameters), len(pieces)],
                               *tensors, *parameters, *pieces]))


def boxes(kind, tensors, held):
    return b"".join(map(pack, [[kind, 1, len(tensors), len(held)], *tensors, *held]))


W = ["w", 1, [8, 4]]
ROTARY = layout([["q_proj", 3, [32, 16]]], [["qkv", 0, 4096, 3, [32, 16], [16, 1]]],
                [[0, 0, 0, [4, 4, 2, 16], [0, 0, 0, 0], [4, 4, 2, 16], [128, 16, 64, 1], 0]])
CAST = layout([W], [["p", 0, 0, 3, [4, 4], [4, 1]]], [[0, 0, 0, [8, 4], [2, 0], [4, 4], [4, 1], 1]])
HALVES = boxes("strew-manifest", [W], [[0, 0, [0, 0], [5, 4], 0], [0, 1, [3, 0], [5, 4], 0]])


def blobs():
    yield "layout", b"\x80" + ROTARY
    yield "layout-cast", b"\x00" + CAST
    yield "declaration", b"\x01" + boxes("strew-declaration", [W], [[0, 0, [0, 0], [8, 4], 0, 64, [4, 1]]])
    yield "share", b"\x07" + boxes("strew-manifest", [W], [[0, 1, [4, 0], [4, 4]]])
    yield "manifest", b"\x03" + HALVES
    scalar = boxes("strew-manifest", [["s", 3, []], ["e", 1, [0, 3]]], [[0, 0, [], []]])
    yield "manifest-scalar", b"\x03" + scalar
    big = boxes("strew-manifest", [["w", 1, [700, 100]]], [[0, 0, [0, 0], [700, 100]]])
    part = layout([["w", 1, [700, 100]]], [["p", 0, 0, 1, [10, 50], [50, 1]]],
                  [[0, 0, 0, [700, 100], [200, 50], [10, 50], [50, 1], 0]])
    for name, manifest, wanted in (("planned", HALVES, CAST), ("planned-big", big, part)):
        yield name, b"\x04" + struct.pack("<H", len(manifest)) + manifest + wanted


def shard(tensors, metadata=True):
    header, at = {"__metadata__": {"format": "pt"}} if metadata else {}, 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return json.dumps(header).encode(), at


def checkpoint():
    one, data = shard([("a", "F32", [2, 3], 24), ("b", "BF16", [], 2), ("empty", "U8", [0, 7], 0)])
    yield "raw", b"\x00" + struct.pack("<Q", len(one)) + one + bytes(data)
    yield "header", b"\x01" + struct.pack("<H", data) + one
    plain, more = shard([("x.weight", "F8_E4M3", [4], 4), ("y", "I64", [1], 8)], False)
    yield "header-plain", b"\x01" + struct.pack("<H", more) + plain
    index = json.dumps({"metadata": {"total_size": 38}, "weight_map": {
        "a": "a", "b": "a", "empty": "a", "x.weight": "b", "y": "b"}}).encode()
    both = b"".join(struct.pack("<HH", size, len(text)) + text for text, size in ((one, data), (plain, more)))
    yield "index", b"\x02" + struct.pack("<H", len(index)) + index + both
    yield "index-missing", b"\x02" + struct.pack("<H", len(index)) + index + both[:len(one) + 4]


# Ops of play_ops.c, by their numbers in fuzz_session.c, fuzz_lead.c and fuzz_join.c.
TURN, TIME, MOVER, CLOSE, RAW, CUT, MODE, SAY, CLIENT, REGISTER, DECLARE, PUBLISH, WORD = range(13)
MEMBER, SAY_MEMBER, SHARE, LEAD_BUCKET = range(13, 17)
SAY_LEAD, MANIFEST, EPOCH, JOIN_BUCKET, REFUSE = range(13, 18)
HELD, STAGED, REPLICA, PART, SECOND, PAIR = 1, 2, 4, 8, 16, 32
WORKER, TRAINER, OBSERVER, AUTO = 1, 2, 3, 4
turns = [TURN, 5]


def peers(flags, layout=0):
    """A worker (end 0) and the only trainer rank (end 1), which answer by themselves."""
    return [CLIENT, WORKER | AUTO, CLIENT, TRAINER | AUTO, REGISTER, 0, flags, layout, 0, DECLARE, 1, 0, 0, *turns]


def session():
    yield from parts()
    for flags in range(4):
        yield f"update-{flags}", peers(flags) + [PUBLISH, 1, 1, *turns, PUBLISH, 1, 2, *turns]
    yield "update-cast", peers(STAGED, 1) + [PUBLISH, 1, 9, *turns]
    yield "late-gate", [MODE, 0, 0, *peers(HELD), MODE, 0, 0, PUBLISH, 1, 1, *turns, TIME, 5, TIME, 5, *turns]
    yield "trainer-lost", peers(0) + [MOVER, 1, PUBLISH, 1, 1, *turns, MOVER, 3, CLOSE, 1, *turns, MOVER, 0, *turns]
    yield "worker-lost", peers(HELD | STAGED) + [MODE, 0, 0, PUBLISH, 1, 1, *turns, CLOSE, 0, *turns]
    yield "withdraw", peers(0) + [SAY, 0, 5, 0, 0, *turns, REGISTER, 0, 0, 2, 0, *turns, SAY, 0, 5, 0, 0, *turns]
    pair = [CLIENT, 5, CLIENT, 5, REGISTER, 0, PAIR, 0, 0, REGISTER, 1, PAIR | SECOND, 1, 0]
    ranks = [CLIENT, 6, CLIENT, 6, DECLARE, 2, 1, 0, DECLARE, 3, 2, 0]
    yield "pair", pair + ranks + [*turns, PUBLISH, 2, 1, PUBLISH, 3, 1, *turns, TIME, 7, *turns]
    yield "messages", [CLIENT, 1, TURN, 0] + [x for k in range(12) for x in (SAY, 0, k, 1, 1, k, 3)] + turns
    yield "cut", [CLIENT, 0, CUT, 0, 10, SAY, 0, 0, 0x15, 0, TURN, 1, CUT, 0, 30, SAY, 0, 11, 0, 0, *turns]
    yield "spoilt", [CLIENT, 1, REGISTER, 0, 0, 0, 1, 30, 0, 9, *turns, RAW, 0, 4, 1, 2, 3, 4, *turns]
    yield "words", peers(HELD) + [WORD, 0, 0, 3, SAY, 0, 7, 0, 1, 0, 3, PUBLISH, 1, 1, *turns, SAY, 0, 8, 0, 0]


# What op_publish() of play_ops.c makes of a version from 128 on.
NAME, OPEN, PUT, CANCEL = (128 | 8 * what for what in range(4))


def named(end):
    """Three subsets of one tensor each."""
    return [x for i in (1, 2, 3) for x in (PUBLISH, end, NAME | i, 1 << i - 1)]


def in_parts(end, version, last):
    """All of them, one after another; what ends it."""
    return [PUBLISH, end, OPEN | 1, version, *turns, PUBLISH, end, PUT | 2, *turns, PUBLISH, end, PUT | 3, *turns,
            PUBLISH, end, last, *turns, *turns]


def parts():
    """For a broker alone and for a lead: versions of the only rank; what goes wrong between two parts."""
    for flags in range(4):
        yield f"parts-{flags}", peers(flags) + named(1) + in_parts(1, 1, PUT) + in_parts(1, 2, CANCEL)
    begun = peers(STAGED) + [*named(1), PUBLISH, 1, OPEN | 1, 1, *turns]
    yield "parts-again", begun + [PUBLISH, 1, PUT | 1, PUBLISH, 1, PUT, PUBLISH, 1, OPEN | 2, 1, PUBLISH, 1, 2, *turns]
    yield "parts-trainer-lost", begun + [CLOSE, 1, *turns]
    yield "parts-worker-lost", begun + [CLOSE, 0, *turns, PUBLISH, 1, PUT | 2, *turns]
    yield "parts-late", begun + [PUBLISH, 1, PUT | 2, *turns, TIME, 6, *turns]


def parts_of_two():
    """The only rank is at another broker, or one of two is; a, b and c are a part each."""
    two = [MEMBER, 1, *turns, TIME, 2, *turns, *turns]

    def says(message, subset, rank=0):
        return [SAY_MEMBER, 0, message, 0x40 | subset, *([1, 1, rank] if rank else [0])]

    def bucket(number, length):
        return [LEAD_BUCKET, 0, number, 2, 250, *struct.pack("<Q", length)]

    def ready(message, part, *buckets, rank=0):
        """What it says, and then its bytes, ahead of its stream's end: the mover waits for nothing."""
        return [*says(message, part, rank), TURN, 0, *(x for one in buckets for x in one), *says(done, 0, rank), *turns,
                *turns]

    subset, publish, done, put, cancel = 12, 8, 9, 13, 15
    share = two + [SHARE, 0, 0, 0, 0, CLIENT, 5, REGISTER, 0, 0, 0, 0, *turns]
    share += [x for i in range(3) for x in says(subset, i)]
    first = ready(publish, 0, bucket(1, 512))
    rest = ready(put, 2, bucket(2, 80)) + ready(put, 3, bucket(3, 65400), bucket(4, 54600))
    yield "parts-elsewhere", share + first + rest + ready(put, 0)
    yield "parts-cancelled-elsewhere", share + first + [*says(cancel, 0), *turns]
    yield "parts-not-all-elsewhere", share + first + [*says(put, 0), *says(put, 1), *turns]
    for name, flags, end in (("elsewhere", 0, [PUBLISH, 0, PUT | 2, *ready(put, 2, bucket(3, 80), rank=1)]),
                             ("hashed", STAGED, []), ("gone", 0, [PUBLISH, 0, PUT | 2, CLOSE, 0, *turns, TIME, 7])):
        both = two + [SHARE, 0, 2, 0, 0, CLIENT, 6, DECLARE, 0, 1, 0, CLIENT, 5, REGISTER, 1, flags, 0, 0, *turns]
        for i, own in enumerate((1, 0, 2)):
            both += [PUBLISH, 0, NAME | 1 + i, own, *says(subset, i, 1), *turns]
        yield f"parts-half-{name}", both + [PUBLISH, 0, OPEN | 1, 1, *ready(publish, 0, bucket(2, 192), rank=1), *end]


def lead():
    yield from parts_of_two()
    two = [MEMBER, 1, *turns, TIME, 2, *turns, *turns]
    yield "epoch", two + peers(0) + [PUBLISH, 1, 1, *turns, *turns]
    yield "three", [MEMBER, 1, *two, *peers(HELD | STAGED), PUBLISH, 1, 1, *turns, *turns, CLOSE, 0, *turns, TIME, 2, *turns]
    share = [SHARE, 0, 0, 0, 0, *turns]
    buckets = [LEAD_BUCKET, 0, 1, 0, LEAD_BUCKET, 0, 2, 1]
    yield "rank-elsewhere", two + share + [CLIENT, 5, REGISTER, 0, 0, 0, 0, *turns, *buckets, SAY_MEMBER, 0, 8, 0, 1, 2, 1,
                                           SAY_MEMBER, 0, 9, 0, 1, 2, 1, *turns, *turns, TIME, 5, *turns]
    yield "half-elsewhere", two + [SHARE, 0, 2, 0, 0, CLIENT, 6, DECLARE, 0, 1, 0, CLIENT, 5, REGISTER, 1, 2, 0, 0, *turns,
                                   PUBLISH, 0, 1, SAY_MEMBER, 0, 8, 0, 2, 1, 1, 2, 1, SAY_MEMBER, 0, 9, 0, 2, 1, 1, 2, 1,
                                   *turns, *turns, TIME, 7, *turns]
    yield "undeclare", two + share + [SAY_MEMBER, 0, 7, 0, 0, *turns]
    yield "silent", two + [MODE, 0, 0, *peers(0), PUBLISH, 1, 1, *turns, TIME, 5, *turns, TIME, 5, *turns]
    yield "messages", two + [x for k in range(12) for x in (SAY_MEMBER, 0, k, 0, 1, k, 3, MEMBER, 1, TURN, 2)] + turns
    groups = [SAY_MEMBER, 0, 2, 0, 1, 2, 2, 2, 1, 1, 3, 1, 0]
    yield "groups", two + [MODE, 0, 0, *peers(0), PUBLISH, 1, 1, *turns, *groups, *turns, SAY_MEMBER, 0, 3, 0, 0, *turns]


def join():
    stands = [*turns, *turns]
    for name, data in parts():
        yield name, stands + data
    named_there = stands + peers(STAGED) + [*turns, *named(1), *turns]
    yield "parts-by-its-lead", named_there + in_parts(1, 1, PUT)
    yield "parts-cancelled", named_there + in_parts(1, 1, CANCEL)
    yield "parts-lead-lost", named_there + [PUBLISH, 1, OPEN | 1, 1, *turns, CLOSE, 0, *turns, TIME, 2, *turns, *turns]
    yield "epoch", stands + peers(0) + [*turns, PUBLISH, 1, 1, *turns, *turns, PUBLISH, 1, 2, *turns, *turns]
    yield "staged", stands + peers(HELD | STAGED) + [*turns, PUBLISH, 1, 1, *turns, *turns]
    announced = stands + [CLIENT, 5, REGISTER, 0, 0, 0, 0, MANIFEST, 0, 0, 0, 0, *turns]
    begin = [SAY_LEAD, 0, 4, 0, 3, 4, 165, 9, 1, 0, 3, 1, 5, 168]
    yield "receives", announced + begin + [*turns, JOIN_BUCKET, 0, 1, 0, JOIN_BUCKET, 0, 2, 1, *turns, *turns]
    yield "abort", announced + begin + [*turns, SAY_LEAD, 0, 7, 0, 0, *turns]
    def says(message, part, *changes):
        return [SAY_LEAD, 0, message, 0x40 | part, len(changes), *(x for change in changes for x in change)]

    choose = [x for i in range(3) for x in says(13, i)]
    begin_parts = says(4, 0, (4, 165), (5, 168), (8, 1, 1, 0)) + turns
    pieces = [x for i, length in enumerate((512, 80, 65400, 54600), 1)
              for x in (JOIN_BUCKET, 0, i, 2, 250, *struct.pack("<Q", length))]
    gone_through = [x for i in (1, 2, 3) for x in (*says(5, i), *turns)]
    yield "parts-received", announced + [MODE, 0, 0, *choose, *turns] + begin_parts + pieces + gone_through + [
        *says(5, 0), *turns, *says(6, 0, (2, 1, 1, 0)), *turns]
    yield "parts-not-received", announced + [MODE, 0, 0, *choose, *turns] + begin_parts + says(5, 1) + turns
    yield "lead-lost", stands + peers(0) + [*turns, MODE, 0, 0, PUBLISH, 2, 1, *turns, CLOSE, 0, *turns, TIME, 2, *turns, *turns]
    yield "alone", stands + [EPOCH, 0, 1, *turns, EPOCH, 0, 2, *turns, EPOCH, 0, 0, *turns]
    yield "refused", [REFUSE, 1, *turns, TIME, 7, *turns]
    yield "messages", stands + [x for k in range(13) for x in (SAY_LEAD, 0, k, 0, 1, k, 3, TURN, 2, TIME, 3)] + turns


def seal():
    """Who reads, the nonce on its way, three messages, and deeds of fuzz_seal.c with pieces of some bytes."""
    whole, _, changed, left_out, any_one, turned_round, raw, cut = range(8)
    said = [3, 30, 1, 0, 5, 11, 0, 36, 1, 0, 170]
    for lead in (0, 1):
        begin = [lead, 0, *said]
        yield f"whole-{lead}", begin + [whole, whole | 1 << 3, whole | 31 << 3]
        yield f"turned-round-{lead}", begin + [turned_round, 0]
        yield f"turned-round-late-{lead}", begin + [whole, whole, turned_round | 7 << 3, 1]
    for name, deed in (("header", [changed, 16, 0, 1]), ("length", [changed, 8, 0, 1]), ("more", [changed, 10, 0, 1]),
                       ("payload", [changed, 26, 0, 128]), ("tag", [changed, 40, 0, 1]), ("left-out", [left_out]),
                       ("swapped", [any_one, 1]), ("repeated", [whole, any_one, 0]), ("raw", [raw, 3, 0, 1, 2, 3]),
                       ("cut", [cut, 30, 0]), ("cut-end", [whole, whole, cut, 25, 0])):
        yield name, [1, 0, *said, *deed, whole, whole]
    yield "another-key", [7, 0, *said, whole]
    yield "another-nonce", [1, 1, 40, 1, *said, whole]
    yield "nonce-header", [1, 1, 16, 1, *said, whole, whole, whole]


def trainer():
    """Calls of fuzz_trainer.c, each with what the broker says to it: 8 is what a good one would, 0 nothing, 5 anything."""
    yield "a", [0x30, 3, 4]
    begun = [0x30, 8, 8, 12, 0, 8]  # t declared, sealed and a subset
    first = [13, 1, 0, 0, 14, 1, 0, 6, 8, 8]  # opened, put, released
    yield "parts", begun + first + [16, 0, 8, 9, 8]
    yield "parts-cancelled", begun + 2 * [*first, 17, 1, 8, 9, 8] + [13, 1, 0, 0, 17, 0, 8]
    yield "parts-refused", begun + [*first, 14, 1, 0, 6, 5, 1, 1, 16, 0, 5, 1, 1, 17, 0, 5, 1, 1, 9, 8]
    yield "parts-crossing", begun + [*first, 14, 1, 0, 9, 5, 9, 0, 6, 8, 14, 1, 0, *first]


TARGETS = {"frames": frames, "blobs": blobs, "checkpoint": checkpoint, "session": session, "lead": lead,
           "join": join, "seal": seal, "trainer": trainer}


def main():
    for target in sys.argv[1:] or TARGETS:
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        for name, data in TARGETS[target]():
            (folder / f"seed-{name}").write_bytes(bytes(data))


if __name__ == "__main__":
    main()
