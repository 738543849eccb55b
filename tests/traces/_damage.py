"""Whole files of every kind that is read, and ways to damage them."""

import io
import json
import struct
import zipfile

import numpy as np

from alflb.traces import LoadTrace, RouterTrace, write_trace

SCORES = np.random.default_rng(0).random((12, 4))


def whole_files(folder):
    """One small valid file of each kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_trace(folder / "trace.npz", RouterTrace(SCORES, 2, np.zeros(4), {"model": "toy"}, np.array([0, 5])))
    write_trace(folder / "loads.npz", LoadTrace(np.array([[3, 1], [2, 2]]), 1))
    np.save(folder / "plain.npy", SCORES)
    np.save(folder / "half.npy", SCORES.astype(np.float16))
    np.savez(folder / "foreign.npz", s=SCORES.astype(np.float32), b=np.zeros(4), ids=np.argsort(SCORES)[:, :2])
    np.savetxt(folder / "plain.csv", SCORES, delimiter=",")
    (folder / "table.csv").write_text("step,expert_0,expert_1\n0,3,1\n1,2,2\n")
    (folder / "plain.json").write_text(json.dumps(SCORES.tolist()))
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"loads": [3, 1], "step": k}) for k in range(3)))
    pq.write_table(pa.table({"scores": SCORES.tolist(), "name": ["x"] * 12}), folder / "table.parquet")
    return sorted(folder.iterdir())


def archive(members, **options):
    """A zip archive of raw members."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", **options) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return content.getvalue()


def npy(header, data=b""):
    """An array file with this very header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def described(shape, dtype="<f8", order=False):
    return f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}}}"


def text_array(text):
    content = io.BytesIO()
    np.save(content, np.array(text))
    return content.getvalue()


def crafted_files():
    """Files that somebody made, name by name: none of them is a trace or an array of scores."""
    metadata = {"format": "alflb-trace", "version": 1, "top_k": 1}
    scores = npy(described((2, 2)), b"\0" * 32)
    yield "deep.npz", archive({"metadata.npy": text_array("[" * 100_000), "scores.npy": scores})
    yield "deep_value.npz", archive({"metadata.npy": text_array('{"a":' * 50_000), "scores.npy": scores})
    yield "long_number.npz", archive({"metadata.npy": text_array("1" * 10_000), "scores.npy": scores})
    for top_k in ("null", "true", "1.5", '"1"', "-1", "1e400", "Infinity", "[]", "9" * 5000):
        text = json.dumps({**metadata, "top_k": None}).replace("null", top_k)
        yield (
            f"top_k {top_k[:9]}.npz".replace('"', "'"),
            archive({"metadata.npy": text_array(text), "scores.npy": scores}),
        )
    for key, value in {"n_group": 3, "topk_group": "x", "batch_tokens": [1], "extra": float("inf")}.items():
        text = json.dumps({**metadata, key: value, "version": 1 if key != "batch_tokens" else "one"})
        yield f"{key}.npz", archive({"metadata.npy": text_array(text), "scores.npy": scores})
    for shape in (
        "(-1, 4)",
        "(10**18, 4)",
        "(99999999999999999999, 1)",
        "(2,)",
        "()",
        "'ab'",
        "(True, 2)",
        "(2, 2, 2, 2)",
    ):
        yield f"shape {shape}.npy".replace("*", "x"), npy(described(shape), b"\0" * 32)
        yield f"shape {shape}.npz".replace("*", "x"), archive({"scores.npy": npy(described(shape), b"\0" * 32)})
    for header in (
        "",
        "{",
        "{'descr': '<f8'",
        "  \n {",
        "[" * 200,
        "(" * 9000,
        "{'shape': (2,2)}",
        "\udcff".encode("utf-8", "replace").decode(),
    ):
        yield f"header {header[:6].encode().hex()}.npy", npy(header, b"\0" * 32)
    for dtype in ("|O", "<U99999999", "<f2,", "<M8[s]", "|V0", "<c16", "|b1", "nonsense", "<i8", ">f4"):
        yield f"dtype {dtype[1:]}.npy".replace("/", ""), npy(described((2, 2), dtype), b"\xff" * 64)
        yield (
            f"dtype {dtype[1:]}.npz".replace("/", ""),
            archive({"scores.npy": npy(described((2, 2), dtype), b"\xff" * 64)}),
        )
    yield "lzma.npz", _damaged_payload(archive({"scores.npy": scores * 9}, compression=zipfile.ZIP_LZMA))
    yield "bz2.npz", _damaged_payload(archive({"scores.npy": scores * 9}, compression=zipfile.ZIP_BZIP2))
    yield "encrypted.npz", _flagged(archive({"scores.npy": scores}), 0x1)
    yield "strange_method.npz", _method(archive({"scores.npy": scores}), 99)
    yield "no_arrays.npz", archive({"notes.txt": b"hello"})
    yield "empty_archive.npz", archive({})
    yield "fake.pt", archive({"archive/data.pkl": b"\x80\x02cos\nsystem\n(S'true'\ntR."})
    yield "pickle.pt", b"\x80\x02cos\nsystem\n(S'true'\ntR."
    yield "deep.json", b"[" * 200_000
    yield "object.json", b'{"a": {"b": [1, 2]}}'
    yield "ragged.json", b"[[1, 2], [3]]"
    yield "nulls.jsonl", b'{"a": [1, null]}\n{"a": [1, 2]}'
    yield "mixed.jsonl", b'{"a": 1}\n{"b": 1}'
    yield "latin.csv", b"\xe9\xff,2\n1,2"
    yield "empty.csv", b""
    yield "nothing.json", b""
    yield "unknown.bin", b"\x00\x01\x02"


def _damaged_payload(content):
    middle = len(content) // 3
    return content[:middle] + bytes(byte ^ 0x55 for byte in content[middle : middle + 20]) + content[middle + 20 :]


def _flagged(content, flag):
    """The same archive with a general-purpose flag set, in the local header and in the directory."""
    data = bytearray(content)
    data[6] |= flag
    data[content.index(b"PK\x01\x02") + 8] |= flag
    return bytes(data)


def _method(content, method):
    data = bytearray(content)
    data[8] = method
    data[content.index(b"PK\x01\x02") + 10] = method
    return bytes(data)


def damage(content, rng):
    """The content of a file after something happened to it; rng is a `random.Random`."""
    data = bytearray(content)
    kind = rng.choice(["truncate", "flip", "flip", "flip", "overwrite", "insert", "remove", "zero", "repeat"])
    place, length = rng.randrange(len(data)), rng.randint(1, 40)
    if kind == "truncate":
        return bytes(data[:place])
    if kind == "flip":
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "overwrite":
        data[place : place + length] = rng.randbytes(min(length, len(data) - place))
    elif kind == "insert":
        data[place:place] = rng.randbytes(length)
    elif kind == "remove":
        del data[place : place + length]
    elif kind == "zero":
        data[place : place + length] = bytes(min(length, len(data) - place))
    else:
        data += data[place:]
    return bytes(data)
