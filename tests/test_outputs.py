"""Folders that a user names for results: what is theirs stays, what is ours is replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from flows.cli import main
from pipelines.errors import UserError
from pipelines.outputs import SUMS, OutputFolder


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: bytes of files, targets of links."""
    return {
        entry.relative_to(folder).as_posix(): os.readlink(entry) if entry.is_symlink() else entry.read_bytes() if entry.is_file() else None
        for entry in folder.rglob("*")
    }


def rows(folder: Path, count: int = 2, name: str = "rows.jsonl") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    file = folder / name
    prompts = ("How many pears are in the basket?", "What is the length of the river?", "Who counts the birds on the roof?")
    file.write_text("".join(json.dumps({"question": prompt, "answer": str(n)}) + "\n" for n, prompt in enumerate(prompts[:count])))
    return file


def merging(folder: Path) -> Path:
    for n, name in enumerate(("base", "one")):
        (folder / name).mkdir(parents=True)
        save_file({"w": torch.full((2, 2), float(n))}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps({"architectures": ["X"], "dtype": "float32"}))
    file = folder / "merge.yaml"
    file.write_text(yaml.safe_dump({"base": str(folder / "base"), "models": [str(folder / "one")], "method": "linear"}))
    return file


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def curate(place: Path, out: Path | str, count: int = 2) -> int:
    return main(["curate", str(rows(place / "in", count)), "--out", str(out)])


def merge(place: Path, out: Path | str) -> int:
    file = place / "models" / "merge.yaml"
    return main(["merge", str(file if file.exists() else merging(place / "models")), "--out", str(out)])


def evaluate(place: Path, out: Path | str) -> int:
    return main(["evaluate", str(place / "nowhere"), "--benchmark", str(rows(place / "in")), "--out", str(out)])


@pytest.mark.parametrize("command", [curate, merge, evaluate])
@pytest.mark.parametrize("content", ["thesis.txt", "problems.parquet", "model.safetensors", "merge.json", SUMS, ".hidden", "empty/", "a/b/c.txt"])
def test_a_folder_that_holds_anything_of_the_users_stays(place, capsys, command, content):
    mine = place / "mine"
    file = mine / content
    (file if content.endswith("/") else file.parent).mkdir(parents=True)
    if not content.endswith("/"):
        file.write_text("{}" if content.endswith("json") else "0" * 64 + "  a\n")
    before = tree(mine)
    assert command(place, mine) == 2
    said = capsys.readouterr().err
    assert "mine: is not empty and not a result of this command; name another folder, or remove it yourself" in said
    assert tree(mine) == before


@pytest.mark.parametrize("command", [curate, merge])
def test_an_earlier_result_is_replaced(place, command):
    assert command(place, place / "out") == 0
    first = tree(place / "out")
    assert command(place, place / "out") == 0
    assert tree(place / "out") == first
    assert sorted(entry.name for entry in place.iterdir()) == sorted({"here", "out", "in" if command is curate else "models"})


def test_another_run_leaves_nothing_of_the_one_before(place):
    assert curate(place, place / "out", 2) == 0
    before = tree(place / "out")
    assert curate(place, place / "out", 3) == 0
    assert tree(place / "out") != before
    assert subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=place / "out", check=False).returncode == 0


@pytest.mark.parametrize("command", [curate, merge])
@pytest.mark.parametrize("change", ["added", "edited", "deleted", "link", "folder"])
def test_an_earlier_result_that_was_touched_stays(place, capsys, command, change):
    assert command(place, place / "out") == 0
    victim = place / "out" / ("problems.parquet" if command is curate else "config.json")
    if change == "added":
        (place / "out" / "notes.md").write_text("what I found")
    elif change == "edited":
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif change == "deleted":
        victim.unlink()
    elif change == "link":
        content = victim.read_bytes()
        victim.unlink()
        (place / "elsewhere").write_bytes(content)
        victim.symlink_to(place / "elsewhere")
    else:
        (place / "out" / "later").mkdir()
    before = tree(place)
    assert command(place, place / "out") == 2
    assert "out: " in (said := capsys.readouterr().err) and "name another folder" in said
    assert tree(place) == before


def test_what_is_no_folder_of_its_own_is_refused(place, capsys, monkeypatch):
    file = place / "file"
    file.write_text("mine")
    (place / "target").mkdir()
    (place / "link").symlink_to(place / "target")
    (place / "dangling").symlink_to(place / "nothing")
    for out, words in (
        (file, "is a file; the result is a folder"),
        (file / "below", "is a file"),
        (place / "link", "is a symbolic link"),
        (place / "dangling", "is a symbolic link"),
        (place / "here", "is where you stand"),
        (".", "is where you stand"),
        (place, "is where you stand"),
        ("/", "is a mount"),
        ("/proc", "is a mount"),
        (Path.home(), "not empty"),
        (Path(__file__).parents[1], "not empty"),
        (place / "in", "the result would replace"),
    ):
        before = tree(place)
        assert curate(place, out) == 2, out
        assert words in capsys.readouterr().err, out
        assert tree(place).items() >= before.items()


def test_an_input_in_an_earlier_result_is_not_replaced(place, capsys):
    assert curate(place, place / "out") == 0
    before = tree(place)
    assert main(["curate", "../out/problems.parquet", "--out", str(place / "out")]) == 2
    assert "the result would replace ../out/problems.parquet, which is read" in capsys.readouterr().err
    assert tree(place) == before


def test_a_file_is_not_written_over_what_is_read(place, capsys):
    source = rows(place / "in")
    (place / "alias").symlink_to(source)
    kept, content = place / "kept.jsonl", source.read_bytes()
    for command in (
        ["verify", source, "--out", source],
        ["verify", source, "--out", place / "alias"],
        ["decontaminate", source, "--against", source, "--out", source, "--dropped", kept],
        ["decontaminate", source, "--against", source, "--out", kept, "--dropped", source],
        ["decontaminate", source, "--against", source, "--out", kept, "--dropped", kept],
        ["verify", source, "--out", place / "in"],
    ):
        assert main([str(part) for part in command]) == 2
        assert "the result" in capsys.readouterr().err
        assert source.read_bytes() == content and not kept.exists()


def test_through_a_linked_parent_and_into_an_empty_folder(place):
    (place / "disk" / "empty").mkdir(parents=True)
    (place / "work").symlink_to(place / "disk")
    assert curate(place, place / "work" / "empty") == 0
    assert (place / "disk" / "empty" / "problems.parquet").is_file() and (place / "work").is_symlink()


def test_what_changes_while_the_command_works_stays(place):
    with OutputFolder(place / "out").replacing() as folder:
        (folder / "result").write_text("1")
    for change in ("late.txt", "result"):
        out = OutputFolder(place / "out")
        with pytest.raises(UserError, match="out: has changed since the command began; it was left as it is"), out.replacing() as folder:
            (folder / "result").write_text("2")
            (place / "out" / change).write_text("mine")
        assert (place / "out" / change).read_text() == "mine"
        assert sorted(entry.name for entry in place.iterdir()) == ["here", "out"]
        (place / "out" / "late.txt").unlink(missing_ok=True)


def test_a_failed_command_leaves_the_earlier_result(place):
    with OutputFolder(place / "out").replacing() as folder:
        (folder / "result").write_text("1")
    before = tree(place)
    with pytest.raises(ZeroDivisionError), OutputFolder(place / "out").replacing() as folder:
        (folder / "result").write_text(str(1 / 0))
    assert tree(place) == before


def test_what_a_killed_run_left_beside_it_is_removed_but_nothing_else_of_that_name(place):
    out, part = place / "out", place / ".out.part"
    code = f"import os\nfrom pathlib import Path\nfrom pipelines.outputs import OutputFolder\nwith OutputFolder(Path({str(out)!r})).replacing() as f:\n"
    code += "    (f / 'half').write_text('x')\n    os.kill(os.getpid(), 9)\n"
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    assert (part / "half").exists() and not out.exists()
    assert curate(place, out) == 0 and not part.exists()
    part.mkdir()
    (part / "thesis.txt").write_text("mine")
    assert curate(place, out) == 2 and (part / "thesis.txt").read_text() == "mine"
