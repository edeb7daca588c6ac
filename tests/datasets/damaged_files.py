"""Damaged .npz and PNG files, one for each way in which reading one fails."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable

NAMES = ("x_train", "y_train", "x_val", "y_val")

_CENTRAL = b"PK\x01\x02"
_FLAGS, _METHOD = 8, 10  # where they lie in an entry of the zip's directory
_LZMA = b"\x09\x14\x05\0" + b"\xff" * 20  # version, length of the properties, impossible ones
_GOOD = "'descr': '|u1', 'fortran_order': False, "


def npy(header: str) -> bytes:
    """Return an array file (version 1.0) with a header as given and no values."""
    raw = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw


def npz(member: bytes) -> bytes:
    """Return a sound zip file whose arrays all have the same content."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in NAMES:
            archive.writestr(f"{name}.npy", member)
    return target.getvalue()


def _directory(place: int, value: int, member: bytes = b"") -> bytes:
    """Return a .npz file with another value in every entry of its zip directory."""
    data = npz(member)
    begin = data.find(_CENTRAL)
    while begin >= 0:
        data = data[: begin + place] + bytes([value]) + data[begin + place + 1 :]
        begin = data.find(_CENTRAL, begin + 1)
    return data


NPZ = {
    "compression nobody knows": _directory(_METHOD, 97),  # NotImplementedError
    "compression that it has not": _directory(_METHOD, 14, _LZMA),  # LZMAError
    "encrypted": _directory(_FLAGS, 1),  # RuntimeError
    "open bracket": npz(npy("{" + _GOOD + "'shape': (4,")),  # tokenize.TokenError
    "indentation": npz(npy("if x:\n    y\n  z\n")),  # SyntaxError, while it is tokenised
    "strange type": npz(npy("{'descr': '(1 2)u1', 'fortran_order': False, 'shape': (4,)}")),
    "more values than can be": npz(npy("{" + _GOOD + f"'shape': ({2**70},)" + "}")),  # Overflow
}  # fmt: skip
"""What is wrong -> content."""


def png(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG file of (kind, content), with the checksums that belong to them."""
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        data += struct.pack(">I", len(content)) + kind + content + checksum
    return data


def _grey(*added: tuple[bytes, bytes], side: int = 28, cut: int | None = None) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(28 * 29))
    return png([(b"IHDR", head[:cut]), (b"IDAT", rows), *added, (b"IEND", b"")])


PNG = {
    "short head": _grey(cut=5),  # ValueError
    "short resolution": _grey((b"pHYs", b"\0")),  # ValueError, behind the pixels
    "empty profile": _grey((b"iCCP", b"")),  # IndexError, behind the pixels
    "more pixels than can be": _grey(side=100_000),  # DecompressionBombError
    "cut": _grey()[:50],  # OSError
    "another kind": b"GIF89a" + bytes(20),  # OSError
}
"""As `NPZ`."""

SOUND_PNG = _grey()
