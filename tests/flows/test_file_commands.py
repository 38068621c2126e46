"""The subcommands that work on files, as a script would call them."""

import json

import pytest

from flows.cli import main


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_verify_judges_every_row_in_order_and_prints_the_confusion(tmp_path, capsys):
    rows = [
        {"id": 1, "gold": "42", "prediction": "<think>41</think>\\boxed{42}", "expected": True},
        {"id": 2, "gold": "42", "prediction": "\\boxed{41}", "expected": False},
        {"id": 3, "answer": "a cat", "verifier": "exact", "prediction": "\\boxed{A  cat}", "expected": True},
    ]
    out = tmp_path / "out.jsonl"
    assert main(["verify", write(tmp_path / "in.jsonl", rows), "--out", str(out)]) == 0
    assert [(row["id"], row["outcome"]) for row in lines(out)] == [(1, "correct"), (2, "wrong"), (3, "correct")]
    printed = capsys.readouterr().out
    assert "3 rows: correct 2, wrong 1" in printed
    assert "expected False, judged wrong: 1" in printed


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"gold": "1", "prediction": "1"}\nnot json\n', "in.jsonl:2: not JSON"),
        ('{"gold": "1"}\n', "in.jsonl:1: expected `prediction` to be a string"),
        ('{"prediction": "1"}\n', "in.jsonl:1: expected `gold` or `answer`"),
        ("[1]\n", "in.jsonl:1: expected an object, got list"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, capsys, text, sentence):
    (tmp_path / "in.jsonl").write_text(text)
    out = tmp_path / "out.jsonl"
    assert main(["verify", str(tmp_path / "in.jsonl"), "--out", str(out)]) == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_decontaminate_splits_rows_and_says_why(tmp_path, capsys):
    item = "A train leaves the station at noon and travels sixty miles every hour until it reaches the far town at six"
    rows = [{"id": "a", "question": item.upper() + "!", "answer": "360"}, {"id": "b", "question": "How many pears are in the basket?", "answer": "3"}]
    kept, dropped = tmp_path / "kept.jsonl", tmp_path / "dropped.jsonl"
    benchmark = write(tmp_path / "bench.jsonl", [{"question": item, "answer": "360"}])
    command = ["decontaminate", write(tmp_path / "in.jsonl", rows), "--against", benchmark, "--out", str(kept), "--dropped", str(dropped)]
    assert main(command) == 0
    assert lines(kept) == rows[1:]
    (gone,) = lines(dropped)
    assert gone["id"] == "a" and gone["reason"].startswith("benchmark_") and "bench" in gone["detail"]
    assert "2 rows: 1 kept, 1 dropped" in capsys.readouterr().out


def test_methods_lists_shows_and_compares(capsys):
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert "grpo " in table and "2402.03300" in table
    assert main(["methods", "gspo"]) == 0
    assert "ratio: sequence" in capsys.readouterr().out
    assert main(["methods", "--diff", "grpo", "dr_grpo"]) == 0
    compared = capsys.readouterr().out
    assert "dr_grpo: none" in compared and "clip" not in compared
    assert main(["methods", "gropo"]) == 2
    assert "did you mean 'grpo'" in capsys.readouterr().err


def test_merge_needs_a_config_that_holds(tmp_path, capsys):
    config = tmp_path / "merge.yaml"
    config.write_text("base: a\nmodels: [b]\nmethd: linear\n")
    assert main(["merge", str(config), "--out", str(tmp_path / "out")]) == 2
    assert "unknown key 'methd'; did you mean 'method'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
