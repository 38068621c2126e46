"""The head of a GGUF file: whatever its bytes are, it is read within bounds or refused in a sentence."""

import random
import struct
import time

import pytest
from ggufs import tiny, write

from pipelines.errors import UserError
from pipelines.models.gguf.header import read_header


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model, tokenizer = tiny("llama")
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "llama", model, tokenizer, kind="Q8_0")


def refused(tmp_path, content):
    """The sentence with which these bytes are refused."""
    file = tmp_path / "damaged.gguf"
    file.write_bytes(content)
    with pytest.raises(UserError) as told:
        read_header(file)
    assert str(told.value).startswith(f"{file}: ") and len(str(told.value)) < 400
    return str(told.value).removeprefix(f"{file}: ")


def test_what_a_file_says_of_itself(file):
    header = read_header(file)
    assert header.architecture == "llama"
    assert header.settings["llama.embedding_length"] == 64
    assert header.settings["tokenizer.ggml.tokens"][:2] == ["<|pad|>", "<|end|>"]
    assert header.kinds() == {"Q8_0": 16, "F32": 5}
    tensor = header.tensors["blk.0.ffn_up.weight"]
    assert (tensor.shape, tensor.elements, tensor.end - tensor.begin) == ((64, 96), 6144, 6144 // 32 * 34)


def head(version=3, tensors=0, settings=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, settings) + rest


def text(value):
    return struct.pack("<Q", len(value)) + value


def test_what_is_not_gguf_is_refused_by_what_it_is(tmp_path):
    assert refused(tmp_path, b"") == "is not a GGUF file: it has 0 bytes"
    assert refused(tmp_path, b"PK\x03\x04" + b"0" * 99).startswith("is not a GGUF file: it begins with b'PK")
    assert refused(tmp_path, head(version=1)).startswith("is GGUF version 1; versions 2 and 3 are read")
    assert refused(tmp_path, b"GGUF" + struct.pack(">IQQ", 3, 0, 0)).startswith("is GGUF for big-endian machines")
    with pytest.raises(UserError, match=r"nothing.gguf: no such file"):
        read_header(tmp_path / "nothing.gguf")


def test_counts_that_no_file_has_are_refused_at_once(tmp_path):
    start = time.monotonic()
    huge = 2**63
    assert "9,223,372,036,854,775,808 settings" in refused(tmp_path, head(settings=huge))
    assert "9,223,372,036,854,775,808 tensors" in refused(tmp_path, head(tensors=huge))
    assert "bytes of one text" in refused(tmp_path, head(settings=1, rest=struct.pack("<Q", huge)))
    many = text(b"k") + struct.pack("<IIQ", 9, 4, huge)
    assert "items of one list" in refused(tmp_path, head(settings=1, rest=many))
    within = text(b"k") + struct.pack("<IIQ", 9, 4, 3_000_000)
    assert "ends within its head" in refused(tmp_path, head(settings=1, rest=within))
    nested = text(b"k") + struct.pack("<IIQ", 9, 9, 1)
    assert "a list of the type 9" in refused(tmp_path, head(settings=1, rest=nested))
    assert "a setting of the unknown type 77" in refused(tmp_path, head(settings=1, rest=text(b"k") + struct.pack("<I", 77)))
    assert time.monotonic() - start < 5


def entry(name=b"w", shape=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def test_tensors_that_cannot_be_where_the_head_says(tmp_path):
    padded = lambda entries, count=1, data=128: head(tensors=count, rest=entries + b"\0" * (32 - (24 + len(entries)) % 32) + b"\0" * data)  # noqa: E731
    assert "truncated: it has" in refused(tmp_path, padded(entry(shape=(3200,))))
    assert "a place for w that is not its own" in refused(tmp_path, padded(entry(offset=7)))
    assert "a place for v that is not its own" in refused(tmp_path, padded(entry() + entry(b"v", offset=64), 2))
    assert "w twice" in refused(tmp_path, padded(entry() + entry(offset=128), 2, 256))
    assert "the shape (0,) for w" in refused(tmp_path, padded(entry(shape=(0,))))
    assert "dimensions of w" in refused(tmp_path, padded(entry(shape=(1, 1, 1, 1, 1))))
    assert "w is stored in the unknown type 999" in refused(tmp_path, padded(entry(kind=999)))
    assert "rows of 33, which are no whole blocks of 32 (Q8_0)" in refused(tmp_path, padded(entry(shape=(33,), kind=8)))


def test_a_part_of_a_split_file(tmp_path):
    rest = text(b"split.count") + struct.pack("<IH", 2, 3)
    assert "is one of 3 parts of a split GGUF file" in refused(tmp_path, head(settings=1, rest=rest))


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, file):
    content = file.read_bytes()
    for length in [*range(0, 2000, 97), len(content) // 2, len(content) - 40]:
        assert "truncated" in (said := refused(tmp_path, content[:length])) or "damaged" in said or "is not a GGUF file" in said


def test_damaged_bytes_give_a_head_or_a_sentence_and_nothing_else(tmp_path, file):
    content, draw = file.read_bytes(), random.Random(11)
    first = min(tensor.begin for tensor in read_header(file).tensors.values())
    damaged, told = tmp_path / "damaged.gguf", list[str]()
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(draw.randrange(1, 6)):
            changed[draw.randrange(first)] = draw.randrange(256)
        damaged.write_bytes(changed)
        try:
            read_header(damaged)
        except UserError as error:
            told.append(str(error))
    assert len(told) > 10 and all(sentence.startswith(f"{damaged}: ") for sentence in told)
