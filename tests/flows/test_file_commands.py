"""The subcommands that work on files, as a script would call them."""

import json

import pyarrow.parquet as pq
import pytest
from chat_endpoint import Answer, serve

from flows.cli import main
from pipelines.config.training import ArchitectureSettings
from pipelines.models.loading import save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.store import read_problems


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


BAD = [
    ("not json", "line 2: not JSON: Expecting value"),
    ('{"id": "x", "gold": "1"}', "line 2: expected `prediction` to be a string, got None"),
    ('{"id": "x", "prediction": "1"}', "line 2: expected `gold` or `answer` to be a string or number, got None"),
    ("[1]", "line 2: expected an object, got list"),
]


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_a_malformed_row_is_named_and_the_others_are_judged(tmp_path, capsys, text, reason):
    good = '{"id": "g", "gold": "1", "prediction": "\\\\boxed{1}"}'
    (tmp_path / "in.jsonl").write_text(f"{good}\n{text}\n{good}\n")
    out = tmp_path / "out.jsonl"
    assert main(["verify", str(tmp_path / "in.jsonl"), "--out", str(out)]) == 0
    first, bad, last = lines(out)
    assert first["outcome"] == last["outcome"] == "correct"
    assert (bad["outcome"], bad["score"], bad["detail"]) == ("malformed", None, reason)
    assert "3 rows: correct 2, malformed 1" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[1]\n", '{"gold": "1"}\n'])
def test_a_file_without_a_row_to_judge_is_refused_and_nothing_is_written(tmp_path, capsys, text):
    (tmp_path / "in.jsonl").write_text(text)
    assert main(["verify", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "in.jsonl: no row can be judged" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_curate_accounts_for_every_row(tmp_path, capsys):
    leak = "A train leaves the station at noon and travels sixty miles every hour until it reaches the far town at six"
    rows = [
        {"id": "a", "question": leak, "answer": "360"},
        {"id": "b", "question": "How many pears are in the basket of fruit?", "answer": "$3$", "solution": "Three pears."},
        {"id": "c", "question": "How many  pears are in the basket of fruit?", "answer": "3"},
        {"id": "d", "question": None, "answer": "3"},
    ]
    source, bench = write(tmp_path / "rows.jsonl", rows), write(tmp_path / "bench.jsonl", [{"text": leak, "answer": "360"}])
    assert main(["curate", source, "--against", bench, "--out", str(tmp_path / "out")]) == 0
    (kept,) = read_problems(tmp_path / "out" / "problems.parquet")
    assert (kept.prompt, kept.answer, kept.source) == ("How many pears are in the basket of fruit?", "3", "rows")
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert sorted(row["step"] for row in dropped) == ["decontaminate", "exact_dedup"]
    (bad,) = pq.read_table(tmp_path / "out" / "malformed.parquet").to_pylist()
    assert (bad["source"], bad["line"], bad["field"]) == ("rows", 4, "question")
    assert "3 rows" in (printed := capsys.readouterr().out) and "1 kept; 1 malformed rows set aside" in printed


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"question": "What?"}\n', "rows.jsonl: its first row has no field answer or gold; it has question"),
        ("", "rows.jsonl: its first row has no field prompt or question or problem or text; it has none"),
    ],
)
def test_curate_needs_rows_that_look_like_problems(tmp_path, capsys, content, sentence):
    (tmp_path / "rows.jsonl").write_text(content)
    assert main(["curate", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluate_a_folder_of_weights_and_a_hosted_model(tmp_path, capsys, monkeypatch):
    tokenizer = train_tokenizer(["Mia has 3 pears. How many?"], 300)
    save_policy(
        tmp_path / "model", tiny_model(ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48), tokenizer, 0), tokenizer
    )
    bench = write(tmp_path / "bench.jsonl", [{"question": f"Mia has {n} pears. How many?", "answer": n} for n in (3, 3, 4)])
    command = ["evaluate", str(tmp_path / "model"), "--benchmark", bench, "--samples", "2", "--max-new-tokens", "4", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "bench: 2 problems, 2 samples each" in printed and "pass@2" in printed
    assert "0 malformed and 1 repeated rows left out" in printed
    samples = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    right = sum(row["outcome"] == "correct" for row in samples) / len(samples)
    assert scores["models"]["model"]["pass_at_k"]["1"]["mean"] == pytest.approx(right)
    assert main([*command[:4], "--samples", "2", "--k", "4"]) == 2
    assert "no k above the samples" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "none"), "--benchmark", bench]) == 2
    assert "none: cannot be loaded as a causal language model" in capsys.readouterr().err
    with serve(lambda prompt, number: Answer("\\boxed{3}")) as endpoint:
        monkeypatch.setenv("TOUCHSTONE_GENERATION_URL", endpoint.url)
        assert main([*command, "--engine", "server", "--served-model", "big"]) == 0
    assert {request["model"] for request in endpoint.requests} == {"big"} and len(endpoint.requests) == 4
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["models"]["model"]["pass_at_k"]["1"]["mean"] == 0.5


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
