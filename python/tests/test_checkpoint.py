"""The checkpoint reader: what `strew push` refuses by name it refuses too."""

import json
import struct

import pytest

torch = pytest.importorskip("torch")

import strew

INDEX = "model.safetensors.index.json"


def entry(begin=0, end=8, dtype="F32", shape=(2,), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def write(path, header, data=bytes(range(8))):
    """header: text, or what becomes it."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def without(key):
    said = entry()
    del said[key]
    return said


A, B = json.dumps(entry()), json.dumps(entry(0, 4, shape=(1,)))


@pytest.mark.parametrize("header, words", [
    ('{"a": ' + B + ', "a": ' + A + "}", "'a' is there twice"),
    ({"a": entry(0, 8), "b": entry(4, 8, shape=(1,))}, "tensor b overlaps a"),
    ({"a": entry(4, 8, shape=(1,))}, "4 bytes before tensor a belong to no tensor"),
    ({"a": entry(0, 4, shape=(1,))}, "4 bytes at the end of the file belong to no tensor"),
    ({"a": entry(0, 16, shape=(4,))}, "tensor a: .* lie outside the file, which has 8 bytes"),
    ({"a": entry(shape=(3,))}, "tensor a: data_offsets give it 8 bytes, dtype and shape make 12"),
    ({"a": entry(8, 0)}, "tensor a: .* end before they begin"),
    ({"a": entry(shape=(2, -1))}, "tensor a: a dimension that is not a whole number"),
    ({"a": entry(shape=(True, 2))}, "tensor a: a dimension that is not a whole number"),
    ({"a": entry(shape=(1,) * 7 + (2,))}, "tensor a: 8 dimensions"),
    ({"a": entry(dtype="F4")}, "tensor a: unknown dtype 'F4'"),
    ({"a": without("dtype")}, "tensor a: no dtype"),
    ({"a": without("shape")}, "tensor a: no shape"),
    ({"a": without("data_offsets")}, "tensor a: data_offsets are not two whole numbers"),
    ({"a": 3}, "tensor a: its entry is not a JSON object"),
    ({"": entry()}, "a tensor without a name"),
    ({"a": entry(), "__metadata__": {"x": 1}}, "__metadata__"),
    ([], "the header: is not a JSON object"),
    ("{", "the header: is not valid JSON"),
])
def test_a_bad_header(tmp_path, header, words):
    path = tmp_path / "m.safetensors"
    write(path, header)
    with pytest.raises(strew.InvalidArgument, match=f"m.safetensors: .*{words}"):
        strew.open_checkpoint(path)


def test_a_file_that_was_cut(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, {"a": entry()})
    whole = path.read_bytes()
    assert strew.open_checkpoint(path)["a"].numpy().tobytes() == bytes(range(8))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(strew.InvalidArgument, match="m.safetensors: "):
            strew.open_checkpoint(path)
    path.write_bytes(struct.pack("<Q", 100_000_001) + whole[8:])
    with pytest.raises(strew.InvalidArgument, match="at most 100000000 are allowed"):
        strew.open_checkpoint(path)
    path.unlink()
    with pytest.raises(strew.Error, match="m.safetensors: cannot be opened"):
        strew.open_checkpoint(path)


def test_unsigned_numbers(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, {"a": entry(0, 2, "U16", (1,)), "c": entry(8, 16, "U64", (1,)),
                 "b": entry(2, 6, "U32", (1,)), "pad": entry(6, 8, "U8", (2,)),
                 "none": entry(6, 6, "F32", (0,))}, bytes(range(16)))
    said = strew.open_checkpoint(path)
    assert (said["a"].item(), said["b"].item()) == (0x100, 0x5040302)
    assert said["c"].item() == 0xf0e0d0c0b0a0908 and said["none"].shape == (0,)


def write_two(folder, weight_map):
    """a lies in 1.safetensors, b in 2.safetensors."""
    for shard, name in (("1", "a"), ("2", "b")):
        write(folder / f"{shard}.safetensors", {name: entry()})
    text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
    (folder / INDEX).write_text(text)


ONE, TWO = "1.safetensors", "2.safetensors"


@pytest.mark.parametrize("weight_map, words", [
    ({"a": ONE, "b": TWO, "c": TWO}, f"tensor c is missing: the index says in {TWO}"),
    ({"a": TWO, "b": ONE}, f"tensor a is in {ONE}, the index says in {TWO}"),
    ({"a": ONE, "c": TWO}, f"tensor b of {TWO} is not named in the index"),
    ({"a": "../1.safetensors"}, "tensor a: the shard '../1.safetensors' is not the plain name"),
    ({"a": "/1.safetensors"}, "tensor a: the shard '/1.safetensors' is not the plain name"),
    ({"a": ".."}, "tensor a: the shard '..' is not the plain name"),
    ({"a": 1}, "tensor a: its shard is not a string"),
    ({}, 'no "weight_map"'), ("{}", 'no "weight_map"'), ("[]", "is not a JSON object"),
    ("{", "is not valid JSON"), ('{"weight_map": 3}', 'no "weight_map"'),
    (f'{{"weight_map": {{"a": "{ONE}", "b": "{TWO}", "a": "{TWO}"}}}}', "'a' is there twice"),
])
def test_a_bad_index(tmp_path, weight_map, words):
    write_two(tmp_path, weight_map)
    with pytest.raises(strew.InvalidArgument, match=f"{INDEX}: .*{words}"):
        strew.open_checkpoint(tmp_path)


def test_folders(tmp_path):
    """With an index what it names, with model.safetensors that; both are two checkpoints."""
    write_two(tmp_path, {"a": ONE, "b": TWO})
    assert set(strew.open_checkpoint(tmp_path)) == {"a", "b"}
    write(tmp_path / "model.safetensors", {"c": entry()})
    with pytest.raises(strew.InvalidArgument, match="both .* name the one that is meant"):
        strew.open_checkpoint(tmp_path)
    assert set(strew.open_checkpoint(tmp_path / INDEX)) == {"a", "b"}
    (tmp_path / INDEX).unlink()
    assert set(strew.open_checkpoint(tmp_path)) == {"c"}
    (tmp_path / "model.safetensors").unlink()
    assert set(strew.open_checkpoint(tmp_path)) == {"a", "b"}
    (tmp_path / TWO).unlink()
    write(tmp_path / ONE, "{}", b"")
    with pytest.raises(strew.InvalidArgument, match="it has no data"):
        strew.open_checkpoint(tmp_path)
