"""Hostile variants of valid files: of their bytes, and of documents, tables, archives and images kept readable."""

import copy
import csv
import io
import json
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import yaml

TEXTS = (
    "", " ", "\0", "\n", "a\nb", "\r", "\t", ",", ":", '"', "'", "#", "&a", "*a", "%", "|",
    "\ufeff", "\u202e", "ﬀ\u0301", "𝔘", "٣",
    "..", "../../etc/passwd", "/etc/passwd", "..\\..\\x.jpg", "C:\\x.jpg", "\\\\host\\x", "~/x.jpg", "file:///etc/passwd",
    "a.jpg", "b.jpg", "sub/c.jpg", "./a.jpg", "sub//c.jpg", "link.jpg", "linked/x.jpg", "loop.jpg", "a.jpg/x",
    "a/" * 3000, "x" * 300, "x" * 5000, "x" * 140_000, "9" * 11, "9" * 400, "9" * 5000, "0x" + "f" * 4000,
    "0", "-1", "+1", "01", "1.0", "1e5", "1e999", "-1e999", "1_000", "nan", "inf", "NaN", "Infinity",
    "1:30", "1:1:1.5", "2020-01-01", "2020-13-45", "true", "null", "~", "=", "<<", "train", "query", "gallery",
    "{}", "[]", "{{7*7}}", "__class__",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 17, 18, 2**31, -(2**31) - 1, 2**63, 2**64, 10**40, 10**400,
    0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"),
    [], {}, [[]], [{}], {"": {}}, [0] * 18, [0] * 51, [0] * 54, [0] * 75, [None] * 18,
)  # fmt: skip


def damaged(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """``content`` with a few bytes flipped, taken out, put in, repeated, or taken from another valid file."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        start = random.randrange(len(data) + 1)
        stop = min(len(data), start + random.choice((1, 2, 4, 16, 300)))
        kind = random.randrange(7)
        if kind == 0 and data:
            data[start % len(data)] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[start:stop] = random.randbytes(stop - start)
        elif kind == 2:
            del data[start:stop]
        elif kind == 3:
            del data[start:]
        elif kind == 4:
            data[start:start] = random.choice(TEXTS)[:300].encode()
        elif kind == 5:
            data[start:start] = data[start:stop]
        else:
            other = random.choice(others)
            cut = random.randrange(len(other) + 1)
            data[start:] = other[cut:]
    return bytes(data)


# --- documents ---------------------------------------------------------------------------------------------


def changed_document(document: Any, random: Random) -> Any:
    """A JSON-like document with a few values replaced, taken out, repeated, renamed or packed into each other."""
    holder = [copy.deepcopy(document)]
    for _ in range(random.choice((1, 1, 2, 4))):
        slots = list(_slots(holder))
        container, key = random.choice(slots[:1] + slots[1:2000])
        kind = random.randrange(8)
        if kind < 3:
            container[key] = _nasty(random)
        elif kind == 3 and container is not holder:
            del container[key]
        elif kind == 4:
            container[key] = [copy.deepcopy(container[key]) for _ in range(random.choice((0, 1, 2, 3)))]
        elif kind == 5:
            other, other_key = random.choice(slots)
            container[key] = copy.deepcopy(other[other_key])
        elif kind == 6 and isinstance(container, dict):
            container[random.choice(TEXTS)] = container.pop(key)
        elif isinstance(container[key], list):
            container[key] *= random.choice((0, 2, 3))
        else:
            container[key] = {random.choice(TEXTS): container[key]}
    return holder[0]


def _slots(container: Any) -> Any:
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _slots(container[key])


def _nasty(random: Random) -> Any:
    if random.random() < 0.6:
        return copy.deepcopy(random.choice(VALUES))
    return random.choice(TEXTS)[:6000]  # PyYAML is too slow for more


def json_variant(content: bytes, random: Random) -> bytes:
    """A valid JSON file with its document changed."""
    text = json.dumps(changed_document(_document(content, json.loads), random))
    if random.random() < 0.05:
        text = text.replace("[", "[" * random.choice((2, 900, 100_000)), 1)
    if random.random() < 0.05:
        text = re.sub("[0-9]+", lambda _: random.choice(("9" * 5000, "NaN", "-Infinity", "1e999")), text, count=1)
    return text.encode("utf-8", "surrogatepass")


def yaml_variant(content: bytes, random: Random) -> bytes:
    """A valid YAML file with its document changed, at times with tags, aliases or other documents put in."""
    document = changed_document(_document(content, yaml.safe_load), random)
    text = yaml.safe_dump(
        document, sort_keys=False, allow_unicode=random.random() < 0.5, default_flow_style=random.random() < 0.5
    )
    kind = random.randrange(6)
    if kind == 0:
        tags = (
            "!!python/object/apply:os.system", "!!python/name:os.system", "!!binary", "!!set", "!!omap", "!!timestamp",
            "!!int", "!!float", "!!bool", "!!null", "!!str", "!!map", "!!seq", "!own", "&a", "*a", "&a [*a]",
        )  # fmt: skip
        places = [found.end() for found in re.finditer(": ?", text)] or [0]
        place = random.choice(places)
        text = f"{text[:place]} {random.choice(tags)} {text[place:]}"
    elif kind == 1:
        width, depth = random.choice(((2, 30), (10, 9), (100, 3)))
        levels = [f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * width)}]" for n in range(1, depth)]
        text = "\n".join(["b0: &b0 {seed: 1}", *levels, f"data: {{<<: *b{depth - 1}}}", text])
    elif kind == 2:
        starts = ("--- 1\n--- 2\n", "%YAML 9.9\n---\n", "%TAG ! !\n---\n", "\t", "[" * 900, "- " * 900)
        text = random.choice(starts) + text
    return text.encode("utf-8", "surrogatepass")


def _document(content: bytes, load: Any) -> Any:
    try:
        return load(content)
    except (ValueError, LookupError, ArithmeticError, RecursionError, AttributeError, yaml.YAMLError):
        return {}


# --- tables and names --------------------------------------------------------------------------------------


def table_variant(content: bytes, random: Random, separator: str = ",") -> bytes:
    """A table of ``separator``-separated lines with cells, rows or columns replaced, swapped, repeated or taken out."""
    rows = [line.split(separator) for line in content.decode("utf-8", "replace").split("\n")]
    for _ in range(random.choice((1, 1, 2, 4))):
        row = random.choice(rows)
        column = random.randrange(len(row)) if row else 0
        kind = random.randrange(7)
        if kind < 3 and row:
            row[column] = random.choice(TEXTS)
        elif kind == 3 and row:
            row[column] = json.dumps(_nasty(random))
        elif kind == 4:
            rows.insert(random.randrange(len(rows) + 1), list(random.choice(rows)))
        elif kind == 5 and row:
            row.pop(column)
        elif row:
            row[column] = random.choice(random.choice(rows) or [""])
    if random.random() < 0.5:
        return "\n".join(separator.join(row) for row in rows).encode()
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=random.choice(("\n", "\r\n", "\r"))).writerows(rows)
    return text.getvalue().encode()


def list_variant(content: bytes, random: Random) -> bytes:
    """:func:`table_variant` of lines whose parts a space separates."""
    return table_variant(content, random, " ")


def row_variant(content: bytes, random: Random) -> bytes:
    """:func:`table_variant` of lines whose parts a colon separates."""
    return table_variant(content, random, ":")


# --- archives ----------------------------------------------------------------------------------------------


def npz_variant(content: bytes, random: Random) -> bytes:
    """A valid .npz file with arrays or their headers replaced, or its members renamed, repeated or taken out."""
    members = _members(content)
    for _ in range(random.choice((1, 1, 2))):
        number = random.randrange(len(members))
        name, data = members[number]
        kind = random.randrange(6)
        if kind == 0:
            members[number] = (name, _npy_bytes(_nasty_array(random)))
        elif kind < 3:
            members[number] = (name, _with_header(data, random))
        elif kind == 3:
            members[number] = (random.choice((random.choice(TEXTS)[:200] + ".npy", random.choice(members)[0])), data)
        elif kind == 4 and len(members) > 1:
            members.pop(number)
        else:
            members[number] = (name, damaged(data, [data], random))
    return _zipped(members, random)


def _nasty_array(random: Random) -> np.ndarray:
    dtype = random.choice((
        "f2", "f4", "f8", "f16", "c8", "i1", "i8", "u8", "?", "U0", "U1", "U9", "S0", "S3", "V0", "V3", "M8[s]",
        "m8[s]", [("a", "f4")], ">f4",
    ))  # fmt: skip
    shape = random.choice(((), (0,), (2,), (3,), (0, 4), (2, 0), (2, 4), (3, 4), (2, 4, 1), (4, 2)))
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(random.randbytes(count), dtype).reshape(shape) if count else np.zeros(shape, dtype)


def _npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _with_header(data: bytes, random: Random) -> bytes:
    """An .npy file whose header says something else."""
    shapes = (
        "(10000000000,)", "(1000000000, 1000)", "(-1, 4)", f"({10**30},)", "(4294967296, 4294967296)", "(9**9,)",
        "(2.0,)", "(1000000000000, 0)", "(True, 4)", "2", "()", "(2,)", "(2, 4)",
    )  # fmt: skip
    kinds = (
        "'<f4'", "'|O'", "'<U0'", "'<U1000000000'", "'V0'", "1", "None", "()", "('<f4',)", "[1]", "{}", "'(1'",
        "[('a', '|O')]", "[('a', '<f4', 1000000000)]", "'f4,O'", "['<f4']",
    )  # fmt: skip
    order = random.choice(("False", "True", "1"))
    header = f"{{'descr': {random.choice(kinds)}, 'fortran_order': {order}, 'shape': {random.choice(shapes)}}}"
    broken = ("(" * 900, "{'descr': (", "  x\n y", "{[]: 1}", "{1: 1, 'a': 2}", "\0", "-" * 5000 + "1")
    header = random.choice((header, header, header, random.choice(broken)))
    version = random.choice((1, 1, 2, 3, 9))
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data[128:]


def _members(content: bytes) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [(member.filename, archive.read(member)) for member in archive.infolist()] or [("a.npy", b"")]
    except Exception:  # zipfile raises almost anything for damaged archives
        return [("a.npy", content)]


def _zipped(members: Sequence[tuple[str, bytes]], random: Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name.replace("\0", "_") or "_"), data)
    return file.getvalue()


def resume_variant(content: bytes, random: Random) -> bytes:
    """A valid file of torch.save whose pickled part, or another one, is replaced or damaged."""
    members = _members(content)
    number = random.randrange(len(members))
    name, data = members[number]
    if name.endswith("data.pkl") and random.random() < 0.5:
        data = pickle.dumps(
            random.choice((print, eval, VALUES, np.ones(2), {"a": np.float64(1)}, Random(0), {1: {2: [3]}})), 2
        )
    else:
        data = damaged(data, [data], random)
    members[number] = (name, data)
    return _zipped(members, random)


def weights_variant(content: bytes, random: Random) -> bytes:
    """A valid safetensors file whose header says something else."""
    length = struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0]
    document = changed_document(_document(content[8 : 8 + length], json.loads), random)
    if random.random() < 0.5 and isinstance(document, dict):
        for about in document.values():
            if isinstance(about, dict):
                about["dtype"] = random.choice(
                    ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I64", "BOOL", "BF16", "F64", "C64", "U16", "F32")
                )
    header = json.dumps(document).encode("utf-8", "surrogatepass")
    header = header + b" " * (-len(header) % 8)
    return struct.pack("<Q", random.choice((len(header), len(header), 2**63, 0))) + header + content[8 + length :]


# --- images ------------------------------------------------------------------------------------------------


def image_variant(content: bytes, random: Random) -> bytes:
    """A PNG with chunks changed and their sums right, or a JPEG with segments put in; others have bytes damaged."""
    if content.startswith(b"\x89PNG"):
        chunks = _chunks(content)
        number = random.randrange(len(chunks))
        kind, data = chunks[number]
        if random.random() < 0.5:
            added = random.choice(
                (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"tRNS", b"PLTE", b"gAMA", b"sBIT")
            )
            packed = zlib.compress(bytes(random.choice((10, 10**6, 10**7))))
            text = random.choice((b"", b"a\0\0" + packed, b"a\0\1\0\0\0" + packed, random.randbytes(30)))
            chunks.insert(random.randrange(1, len(chunks) + 1), (added, text))
        elif kind == b"IHDR" or random.random() < 0.3:
            size = struct.pack(">II", *(random.choice((0, 1, 64, 7072, 2**16, 2**31 - 1, 2**32 - 1)) for _ in "wh"))
            header = size + bytes(random.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in range(5))
            chunks[0] = (b"IHDR", header)
        else:
            chunks[number] = (kind, damaged(data, [data], random))
        return png(chunks)
    if content.startswith(b"\xff\xd8") and random.random() < 0.5:
        tiff = b"Exif\0\0" + random.choice((b"II*\0", b"MM\0*")) + random.randbytes(random.choice((4, 40)))
        about = random.choice(
            (tiff, b"ICC_PROFILE\0\1\1" + random.randbytes(99), b"MPF\0" + random.randbytes(40), b"Adobe\0d")
        )
        segment = bytes([0xFF, 0xE0 + random.randrange(16)]) + struct.pack(">H", len(about) + 2) + about
        return content[:2] + segment + content[2:]
    return damaged(content, [content], random)


def png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of chunks (type, content), their lengths and sums right."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place + 8 <= len(content):
        length = struct.unpack(">I", content[place : place + 4])[0]
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks or [(b"IHDR", bytes(13))]
