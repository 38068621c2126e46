"""The head of a GGUF file, read within bounds: every count and every offset is held against the size of the file before it is followed.

Form: 'GGUF', version, counts, settings (key, type, value), tensors (name, shape, type, offset), padding, data. Little-endian, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_SETTINGS, MOST_TENSORS, MOST_ITEMS = 10_000, 100_000, 4_000_000
"""More settings, tensors, or items of one list are no model that we read; the largest vocabulary known has 262,144 tokens."""
MOST_DIMENSIONS = 4
LONGEST_TEXT, LONGEST_NAME = 4 << 20, 1 << 16
"""Bytes of a text such as a chat template, and of a key or tensor's name."""
LARGEST_SIDE = 1 << 40
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a setting -> its format for `struct`."""
TEXT, LIST = 8, 9
ALIGNMENT = 32


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. shape: fastest dimension first, as the file has it. begin, end: bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says of itself. settings: dotted key -> value; architecture: `llama`, `qwen2`, ..."""

    path: Path
    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        return str(self.settings.get("general.architecture", ""))

    @property
    def elements(self) -> int:
        """Weights in all tensors together."""
        return sum(tensor.elements for tensor in self.tensors.values())

    def kinds(self) -> dict[str, int]:
        """Number of tensors in each type of quantisation, the most frequent first."""
        return dict(Counter(tensor.kind for tensor in self.tensors.values()).most_common())


def read_header(path: Path) -> Header:
    """The head of a file; tensor data are not touched.

    Raises:
        UserError: no file, not GGUF, damaged or truncated, a part of a split file, a quantisation that cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size < 24:
        raise UserError(f"{path}: is not a GGUF file: it has {path.stat().st_size} bytes")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _Reader(path, content).header()
        except (struct.error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: the GGUF file is damaged: its head cannot be read ({error})") from None


class _Reader:
    """Reads forward through `content`."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.at = path, content, 0

    def header(self) -> Header:
        magic, version = self.content[:4], struct.unpack_from("<I", self.content, 4)[0]
        if magic != MAGIC:
            raise UserError(f"{self.path}: is not a GGUF file: it begins with {magic!r}, expected {MAGIC!r}")
        if version not in VERSIONS:
            big = struct.unpack(">I", struct.pack("<I", version))[0] in VERSIONS
            what, known = "for big-endian machines" if big else f"version {version}", " and ".join(map(str, VERSIONS))
            raise UserError(f"{self.path}: is GGUF {what}; versions {known} are read, little-endian")
        self.at = 8
        tensors, settings = self.number("Q"), self.number("Q")
        self.bound(settings, MOST_SETTINGS, "settings")
        self.bound(tensors, MOST_TENSORS, "tensors")
        found: dict[str, Any] = {}
        for _ in range(settings):
            key = self.text(LONGEST_NAME)
            found[key] = self.value(self.number("I"))
        self.whole(found)
        alignment = found.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            self.damaged(f"an alignment of {alignment!r}")
        entries = [self.entry() for _ in range(tensors)]
        start = -(-self.at // alignment) * alignment
        return Header(self.path, found, self.placed(entries, start, alignment))

    def damaged(self, what: str) -> None:
        raise UserError(f"{self.path}: the GGUF file is damaged: it names {what}")

    def bound(self, count: int, most: int, what: str) -> None:
        if count > most:
            self.damaged(f"{count:,} {what}, where {most:,} are the most that are read")

    def number(self, form: str) -> Any:
        value = struct.unpack_from(f"<{form}", self.content, self.at)[0]
        self.at += struct.calcsize(f"<{form}")
        return value

    def text(self, longest: int) -> str:
        length = self.number("Q")
        self.bound(length, longest, "bytes of one text")
        self.left(length)
        self.at += length
        return self.content[self.at - length : self.at].decode()

    def left(self, length: int) -> None:
        if length > len(self.content) - self.at:
            raise UserError(f"{self.path}: the GGUF file is truncated or damaged: it ends within its head")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text(LONGEST_TEXT)
        if kind != LIST:
            self.damaged(f"a setting of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        self.bound(count, MOST_ITEMS, "items of one list")
        if inner == TEXT:
            return [self.text(LONGEST_TEXT) for _ in range(count)]
        if inner not in SCALARS:
            self.damaged(f"a list of the type {inner}")
        form = f"<{count}{SCALARS[inner]}"
        self.left(struct.calcsize(form))
        self.at += struct.calcsize(form)
        return list(struct.unpack_from(form, self.content, self.at - struct.calcsize(form)))

    def whole(self, settings: dict[str, Any]) -> None:
        if settings.get("split.count", 1) > 1:
            raise UserError(f"{self.path}: is one of {settings['split.count']} parts of a split GGUF file; join them (llama-gguf-split --merge)")

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of a tensor."""
        name, dimensions = self.text(LONGEST_NAME), self.number("I")
        self.bound(dimensions, MOST_DIMENSIONS, f"dimensions of {name}")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        if not shape or not all(0 < side < LARGEST_SIDE for side in shape):
            self.damaged(f"the shape {shape} for {name}")
        return name, shape, self.number("I"), self.number("Q")

    def placed(self, entries: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int) -> dict[str, Tensor]:
        """The tensors where they lie, none twice, none over another, all within the file."""
        found = [Tensor(name, shape, *_extent(self.path, name, shape, kind, start + offset)) for name, shape, kind, offset in entries]
        end = start
        for tensor in sorted(found, key=lambda tensor: tensor.begin):
            if tensor.begin < end or tensor.begin % alignment:
                self.damaged(f"a place for {tensor.name} that is not its own")
            end = tensor.end
        if end > len(self.content):
            raise UserError(f"{self.path}: the GGUF file is truncated: it has {len(self.content):,} bytes and its tensors end at {end:,}")
        if twice := [name for name, count in Counter(tensor.name for tensor in found).items() if count > 1]:
            self.damaged(f"{twice[0]} twice")
        return {tensor.name: tensor for tensor in found}


def _extent(path: Path, name: str, shape: tuple[int, ...], kind: int, begin: int) -> tuple[str, int, int]:
    """(type, first byte, byte behind the last) of a tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        known = GGMLQuantizationType(kind)
        per_block, size = GGML_QUANT_SIZES[known]
    except (ValueError, KeyError):
        raise UserError(f"{path}: {name} is stored in the unknown type {kind}: damaged, or made by a newer llama.cpp") from None
    if shape[0] % per_block:
        raise UserError(f"{path}: the GGUF file is damaged: {name} has rows of {shape[0]}, which are no whole blocks of {per_block} ({known.name})")
    return known.name, begin, begin + prod(shape) // per_block * size
