"""The subcommands that work on files, as a script would call them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mini_project
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from chat_endpoint import Answer, serve
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from flows.cli import main
from pipelines import paths
from pipelines.config.training import ArchitectureSettings
from pipelines.evaluation import benchmarks
from pipelines.evaluation.samples import SAMPLE_SCHEMA
from pipelines.generation import respond
from pipelines.models.loading import save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.store import read_problems, write_table
from pipelines.verifiers import probe


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


@pytest.mark.skipif(bool(probe()), reason=probe())
def test_verdicts_that_may_agree_too_seldom_with_what_is_expected_are_refused(tmp_path, capsys):
    """8 of 10 agree: Wilson's interval is [.490, .943], worked by hand. A row that nothing is said of, and a malformed one, do not count."""
    right, wrong = {"gold": "4", "prediction": "\\boxed{4}"}, {"gold": "4", "prediction": "\\boxed{5}"}
    rows = [right | {"expected": "correct"}] * 6 + [wrong | {"expected": "wrong"}, wrong | {"expected": "unparsable"}]
    rows += [right | {"expected": "wrong"}, wrong | {"expected": "correct"}, {"gold": "4", "expected": "correct"}, right]
    source = write(tmp_path / "in.jsonl", rows)
    asked = ["verify", source, "--out", str(tmp_path / "out.jsonl"), "--agreement"]
    assert main([*asked, "0.49"]) == 0
    assert "agreement on whether a response is correct: 0.800 [0.490, 0.943] of 10 verdicts; accepted" in capsys.readouterr().out
    assert main([*asked, "0.5"]) == 1
    assert "REFUSED: the lower end must be at least 0.500" in capsys.readouterr().out
    assert main([*asked, "80"]) == 2 and "80 is no share" in capsys.readouterr().err
    assert main(["verify", write(tmp_path / "none.jsonl", [right]), "--out", str(tmp_path / "out.jsonl"), "--agreement", "0.5"]) == 2
    assert "no judged row says under `expected`" in capsys.readouterr().err


def test_verify_says_what_held_the_programs_in(tmp_path, capsys):
    row = {"answer": "", "verifier": "code", "verifier_args": {"asserts": ["assert f(1) == 2"]}, "prediction": "```python\ndef f(x): return x + 1\n```"}
    assert main(["verify", write(tmp_path / "in.jsonl", [row]), "--out", str(tmp_path / "out.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "1 rows: correct 1" in printed
    assert "programs ran with system calls filtered; new namespaces forbidden; memory of all processes together " in printed


BAD = [
    ("not json", "line 2: not JSON: Expecting value"),
    ('{"id": "x", "gold": "1"}', "line 2: key 'prediction' is missing"),
    ('{"id": "x", "gold": "1", "prediction": 1}', "line 2: expected `prediction` to be a string, got 1"),
    ('{"id": "x", "prediction": "1"}', "line 2: key 'answer' or 'gold' is missing"),
    ('{"id": "x", "prediction": "1", "answer": null}', "line 2: key 'answer' or 'gold' is null"),
    ('{"id": "x", "prediction": "1", "gold": [1]}', "line 2: expected `gold` or `answer` to be a string or number, got [1]"),
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


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny model that has learnt nothing."""
    folder = tmp_path_factory.mktemp("weights") / "model"
    tokenizer = train_tokenizer(["Mia has 3 pears. How many?"], 300)
    save_policy(folder, tiny_model(ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48), tokenizer, 0), tokenizer)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in: interrupted work is kept below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_evaluate_a_folder_of_weights(here, weights, capsys):
    bench = write(here / "bench.jsonl", [{"question": f"Mia has {n} pears. How many?", "answer": n} for n in (3, 3, 4)])
    command = ["evaluate", str(weights), "--benchmark", bench, "--samples", "2", "--max-new-tokens", "4", "--out", "out"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "bench: 2 problems, 2 samples each" in printed and "pass@2" in printed and "pass@1 = avg@k" in printed
    assert "0 malformed and 1 repeated rows left out" in printed
    samples = pq.read_table("out/samples.parquet").to_pylist()
    scores = json.loads((here / "out" / "scores.json").read_text())
    right = sum(row["outcome"] == "correct" for row in samples) / len(samples)
    assert scores["models"]["model"]["pass_at_k"]["1"]["mean"] == pytest.approx(right)
    assert len(list((here / "out" / "lm_eval").rglob("samples_bench_*.jsonl"))) == 1
    assert main([*command[:4], "--samples", "2", "--k", "4"]) == 2
    assert "no k above the samples" in capsys.readouterr().err
    (here / "empty").mkdir()
    assert main(["evaluate", "empty", "--benchmark", bench]) == 2
    assert "empty: cannot be loaded as a causal language model" in capsys.readouterr().err
    assert main([*command[:4], "--map", "question"]) == 2
    assert "--map takes FIELD=COLUMN, such as prompt=question, got 'question'" in capsys.readouterr().err


def test_evaluate_samples_as_params_and_options_say(here, weights):
    """The options count before the file."""
    params = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    params["evaluation"]["generation"] = {"max_new_tokens": 7, "temperature": 0.5, "prompt": {"system": "Be short.", "user": "Q: {problem}"}}
    (here / "params.yaml").write_text(yaml.safe_dump(params))
    bench = write(here / "bench.jsonl", [{"question": "Mia has 3 pears. How many?", "answer": 3}])
    command = ["evaluate", str(weights), "--benchmark", bench, "--samples", "1", "--out", "out", "--params", "params.yaml", "--temperature", "0"]
    for more, system in (([], "Be short."), (["--system", "Be long."], "Be long.")):
        assert main([*command, *more]) == 0
        about = json.loads((here / "out" / "scores.json").read_text())
        assert (about["max_new_tokens"], about["temperature"], about["top_p"], about["precision"]) == (7, 0.0, 1.0, "float32")
        assert (about["prompt"]["system"], about["prompt"]["user"]) == (system, "Q: {problem}")
    assert main([*command, "--top-p", "0"]) == 2


def test_evaluate_a_hosted_model(here, weights, monkeypatch):
    bench = write(here / "bench.jsonl", [{"question": f"Mia has {n} pears. How many?", "answer": n} for n in (3, 4)])
    with serve(lambda prompt, number: Answer("\\boxed{3}")) as endpoint:
        monkeypatch.setenv("TOUCHSTONE_GENERATION_URL", endpoint.url)
        command = ["evaluate", str(weights), "--benchmark", bench, "--samples", "2", "--max-new-tokens", "4", "--out", "out"]
        assert main([*command, "--engine", "server", "--served-model", "big", "--system", "Be short."]) == 0
    assert all(request["messages"][0] == {"role": "system", "content": "Be short."} for request in endpoint.requests)
    assert {request["model"] for request in endpoint.requests} == {"big"} and len(endpoint.requests) == 4
    assert json.loads((here / "out" / "scores.json").read_text())["models"]["model"]["pass_at_k"]["1"]["mean"] == 0.5


def test_evaluate_a_base_model_of_another_family_on_a_hugging_face_dataset(here, weights, capsys):
    tokenizer = AutoTokenizer.from_pretrained(weights)
    tokenizer.chat_template = None
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=256, **ends)).save_pretrained(here / "gpt2")
    tokenizer.save_pretrained(here / "gpt2")
    rows = [{"problem": f"How many are {n}?", "target": {"value": str(n)}, "level": n % 2} for n in range(4)]
    Dataset.from_list(rows).save_to_disk(str(here / "pears"))
    command = ["evaluate", "gpt2", "--benchmark", "pears", "--samples", "2", "--temperature", "0", "--max-new-tokens", "4", "--out", "out"]
    assert main([*command, "--map", "answer=target.value", "--map", "topics.level=level", "--verifier", "exact"]) == 0
    assert "gpt2 on pears: 4 problems, 2 samples each" in capsys.readouterr().out
    samples = pq.read_table("out/samples.parquet").to_pylist()
    assert sorted({(row["answer"], *row["topics"]) for row in samples}) == [(str(n), f"level {n % 2}") for n in range(4)]
    for problem in {row["problem_id"] for row in samples}:
        assert len({row["response"] for row in samples if row["problem_id"] == problem}) == 1, "greedy"


KILLED = "import sys; from pipelines.evaluation import benchmarks; benchmarks.PART = 8; from flows.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.long
def test_an_evaluation_killed_at_work_is_finished_by_the_next_and_leaves_the_same_bytes(here, weights, monkeypatch):
    bench = write(here / "bench.jsonl", [{"question": f"Mia has {n} pears. How many?", "answer": n} for n in range(20)])
    command = ["evaluate", str(weights), "--benchmark", bench, "--samples", "4", "--max-new-tokens", "24", "--out"]
    (here / "killed").mkdir()
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *command, str(here / "out")], cwd=here / "killed", env=os.environ | {"PYTHONPATH": path}
    )
    work = here / "killed" / paths.WORK / "evaluate"
    mini_project.wait_until(lambda: process.poll() is not None or len(list(work.glob("*/*.parquet"))) >= 2, 60)
    assert process.poll() is None, "it was over before it could be killed"
    process.kill()
    process.wait()
    done = {file.name: file.stat().st_mtime_ns for file in work.glob("*/*.parquet") if not file.name.startswith(".")}
    assert 2 <= len(done) < 10 and not (here / "out").exists()

    asked = []
    monkeypatch.setattr(benchmarks, "PART", 8)
    monkeypatch.setattr(benchmarks, "respond", lambda generator, chunk, *rest: asked.extend(chunk) or respond(generator, chunk, *rest))
    monkeypatch.chdir(here / "killed")
    assert main([*command, str(here / "out")]) == 0
    assert len(asked) == 20 - 2 * len(done), "what was done is not done again"
    assert list(work.glob("*/*.parquet")) == [], "finished work is not kept"
    monkeypatch.chdir(here)
    assert main([*command, "alone"]) == 0
    files = sorted(file.relative_to(here / "out") for file in (here / "out").rglob("*.*"))
    assert len(files) == 4
    assert all((here / "out" / file).read_bytes() == (here / "alone" / file).read_bytes() for file in files)


@pytest.mark.long
def test_two_evaluations_of_the_same_work_at_once_do_it_together(here, weights):
    bench = write(here / "bench.jsonl", [{"question": f"Mia has {n} pears. How many?", "answer": n} for n in range(20)])
    command = ["evaluate", str(weights), "--benchmark", bench, "--samples", "4", "--max-new-tokens", "24", "--out"]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, *command, str(here / name)],
            cwd=here, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    files = sorted(file.relative_to(here / "one") for file in (here / "one").rglob("*.*"))
    assert len(files) == 4
    assert all((here / "one" / file).read_bytes() == (here / "two" / file).read_bytes() for file in files)
    assert list((here / paths.WORK / "evaluate").glob("*/")) == [], "the last one clears the parts"


def judged(right):
    """Samples of `right[problem]` correct ones out of four."""
    rows = []
    for problem, count in right.items():
        for i in range(4):
            row = {"problem_id": problem, "topics": [], "prompt": problem, "answer": "7", "answer_type": "integer", "sample": i, "seed": i}
            row |= {"response": f"{i < count} {i}", "response_tokens": 3, "finish_reason": "stop", "score": float(i < count), "detail": ""}
            rows.append(row | {"outcome": "correct" if i < count else "wrong", "extracted": "7" if i < count else "8"})
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def test_compare_prints_the_paired_table_and_says_better_only_where_it_is_shown(here, capsys):
    plain = {f"p{i}": i % 3 for i in range(42)}
    for model, sums, words in (("sft", plain, plain), ("math", {p: c + 2 for p, c in plain.items()}, plain)):
        write_table(paths.SAMPLES / model / "sums.parquet", judged(sums))
        write_table(paths.SAMPLES / model / "words.parquet", judged(words))
    assert main(["compare", "math", "sft"]) == 0
    head, columns, *table = capsys.readouterr().out.splitlines()
    assert head == "A = math, B = sft; 'better' says that A is" and "95 % interval" in columns and "Holm p" in columns
    assert [(line.split()[0], line.split()[1], line.endswith("better")) for line in table] == [
        ("sums", "pass@1", True),
        ("sums", "pass@4", True),
        ("words", "pass@1", False),
        ("words", "pass@4", False),
    ]
    assert table[0].split()[2:6] == ["42", "0.7500", "0.2500", "+0.5000"] and table[2].endswith("no difference shown")
    assert main(["compare", "sft", str(paths.SAMPLES / "math" / "sums.parquet"), "--k", "2", "--format", "json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["k"], row["verdict"], row["test"]) for row in rows] == [(1, "worse", "sign flip"), (2, "worse", "sign flip")]
    for wrong, sentence in (
        (["math", "math"], "A and B are the same, 'math'"),
        (["math", "nowhere"], "'nowhere' has not been evaluated: expected what `evaluate --out` wrote, samples, or one of math, sft"),
        (["math", "sft", "--k", "5"], "--k must lie between 1 and the samples of a problem, which on 'sums' are 4, got [1, 5]"),
    ):
        assert main(["compare", *wrong]) == 2
        assert sentence in capsys.readouterr().err


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
    assert main(["methods", "--part", "aggregation", "--paper", "dapo"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["dapo"]
    assert main(["methods", "--paper", "no such paper"]) == 1
    assert "no such row" in capsys.readouterr().err
    assert main(["methods", "gropo"]) == 2
    assert "did you mean 'grpo'" in capsys.readouterr().err


def test_merge_needs_a_config_that_holds(tmp_path, capsys):
    config = tmp_path / "merge.yaml"
    config.write_text("base: a\nmodels: [b]\nmethd: linear\n")
    assert main(["merge", str(config), "--out", str(tmp_path / "out")]) == 2
    assert "unknown key 'methd'; did you mean 'method'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_boundary_of_two_files_of_samples(tmp_path, capsys):
    for name, correct in (("start", [3, 2, 1, 1]), ("rl", [4, 4, 0, 0])):
        blank = {"topics": [], "prompt": "", "answer": "7", "answer_type": "integer", "seed": 0, "response": "", "response_tokens": 1}
        blank |= {"finish_reason": "stop", "score": 0.0, "detail": ""}
        outcomes = [(str(i), j, "correct" if j < c else "wrong") for i, c in enumerate(correct) for j in range(4)]
        rows = [{**blank, "problem_id": i, "sample": j, "outcome": outcome} for i, j, outcome in outcomes]
        pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), tmp_path / f"{name}.parquet")
    files = [str(tmp_path / f"{name}.parquet") for name in ("start", "rl")]
    assert main(["boundary", *files, "--bootstrap", "200", "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "4 problems, 4 samples" in printed and "no crossing shown: k* lies in [" in printed and "both 2, start only 2, rl only 0" in printed
    found = json.loads((tmp_path / "out.json").read_text())
    # From +1/16 at k = 1 to -5/24 at k = 2: zero at 3/13 of the octave.
    assert found["crossing"]["k"] == pytest.approx(2 ** (3 / 13)) and found["support"]["lost"] == {"2": 1, "3": 1}
    assert main(["boundary", files[0], str(tmp_path / "out.json")]) == 2
    assert "out.json: no Parquet file of samples" in capsys.readouterr().err


def test_scaling_predicts_and_refuses(tmp_path, capsys):
    def curve(name, asymptote, middle, steps=120):
        rate = [0.2 + (asymptote - 0.2) / (1 + (middle / c) ** 2) + 0.01 * (-1) ** c for c in range(1, steps)]
        rows = "".join(f"{c + 1},{value}\n" for c, value in enumerate(rate, 1))
        (tmp_path / name).write_text(f"step,pass_rate\n{rows}")
        return str(tmp_path / name)

    low, high, rising = curve("low.csv", 0.6, 15), curve("high.csv", 0.8, 15), curve("rising.csv", 0.8, 900)
    assert main(["scaling", low, high]) == 0
    assert "asymptote 0.6" in (printed := capsys.readouterr().out) and "the second run has the higher asymptote: -0.2" in printed
    assert main(["scaling", low, "--until", "60", "--to", "200"]) == 0
    assert "check: mean 0.589 [" in (printed := capsys.readouterr().out) and "from 61 to 119; it was 0.588" in printed
    assert main(["scaling", rising]) == 0 and "asymptote not told: " in capsys.readouterr().out
    assert main(["scaling", low, rising]) == 2 and "the second run cannot be ranked" in capsys.readouterr().err
    assert main(["scaling", low, "--reward", "score"]) == 2
    assert "low.csv: has no column 'score'; it has step, pass_rate" in capsys.readouterr().err


def test_diff_weights_of_two_folders(tmp_path, capsys):
    for name, scale in (("before", 1.0), ("after", 1.01)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.arange(1.0, 65.0).reshape(8, 8) * scale}, tmp_path / name / "model.safetensors")
    command = ["diff-weights", str(tmp_path / "before"), str(tmp_path / "after")]
    assert main([*command, "--dtype", "stored", "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "unchanged        0 " in printed and "spectral drift   0.01 " in printed and "1 of 1 matrices" in printed
    assert json.loads((tmp_path / "out.json").read_text())["tensors"][0]["drift"] == pytest.approx(0.01, abs=1e-5)
    assert main([*command, "--rank", "0"]) == 2 and "--rank must be at least 1" in capsys.readouterr().err
    assert main([*command, "--budget", "1e-9"]) == 0
    seen = capsys.readouterr()
    assert "0 of 1 matrices" in seen.out and "left out" in seen.out and "w (" in seen.out and "diff-weights 1/1  tensors" in seen.err
