"""Does curation find what it must, how fast, in how much memory: `python -m benchmarks.curation [--data ../shared/data] [--rows 1000000]`.

Found: recall by kind of variant, and false positives, of the sets in decontam/, with and without embeddings. Fast: rows expanded from the real
training files by a seeded generator (other numbers, other words in some, a few benchmark items among them) against the 1,849 benchmark items:
n-gram decontamination and near-duplicate removal, each in a process of its own, at 10 k to 1 M rows, with the largest resident set; and a plain
Python script with a set of n-grams on the same rows. Rollouts: what early stopping spares of grading, on pass rates drawn from the real grades.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from pipelines.config.curation import CurationSettings, DecontaminationSettings, NearDuplicateSettings
from pipelines.curation import curate_file
from pipelines.curation.decontamination import Index
from pipelines.curation.difficulty import decided
from pipelines.curation.steps import Inputs
from pipelines.models.embedding import installed
from pipelines.records import PROBLEM_SCHEMA, Problem, problem_id
from pipelines.store import problem_table

Row = dict[str, Any]
EMBEDDING = "all-MiniLM-L6-v2"
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
STEPS = {"n-gram decontamination": "decontaminate", "near duplicates": "near_dedup"}
SYNONYMS = {"many": "numerous", "total": "overall", "each": "every", "buys": "purchases", "find": "determine", "such": "so", "number": "count"}
NAMES = ("Ana", "Bo", "Carla", "Dev", "Elif", "Farid", "Gina", "Hugo", "Ines", "Jun")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curation", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with decontam/, tasks/ and graded/")
    parser.add_argument("--rows", type=int, default=SIZES[-1], help="largest number of rows")
    parser.add_argument("--one", nargs=2, metavar=("STEP", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.data, *options.one)
    figures: dict[str, Any] = {"found": found(options.data), "rollouts": rollouts(options.data)}
    with tempfile.TemporaryDirectory() as temporary:
        figures["scale"] = scale(options.data, Path(temporary), [size for size in SIZES if size <= options.rows])
    print(json.dumps(figures))
    return None


def found(data: Path) -> dict[str, Any]:
    """Recall by kind and false positives."""
    items, contaminated, negatives, natural = (
        read(data / "decontam" / f"{name}.jsonl") for name in ("benchmark_items", "contaminated", "hard_negatives", "natural_hits")
    )
    known = {item["id"] for item in items}
    variants = [row for row in contaminated if row["benchmark_item_id"] in known]
    print(f"{len(contaminated) - len(variants)} variants are left out: their items are not in benchmark_items.jsonl")
    settings: dict[str, Any] = {
        "any 13-gram": {"n": 13, "rule": "any", "siblings": "drop", "paraphrases": None},
        "open-r1, any 8-gram": {"n": 8, "rule": "any", "siblings": "drop", "paraphrases": None},
        "8-gram containment": {"siblings": "drop", "paraphrases": None},
        "words": {},
        "words and embeddings": {"paraphrases": {"embedding": EMBEDDING}},
    }
    figures = {}
    for name, given in settings.items():
        if name == "words and embeddings" and not installed(EMBEDDING):
            print("embeddings: the extra `embedding` is not installed")
            continue
        index = Index([item["text"] for item in items], DecontaminationSettings.model_validate(given))
        hits = [hit is not None for hit in index.hits([row["text"] for row in variants])]
        total = Counter(row["kind"] for row in variants)
        right = Counter(row["kind"] for row, hit in zip(variants, hits, strict=True) if hit)
        wrong = Counter(row["same_template"] for row, hit in zip(negatives, index.hits([row["text"] for row in negatives]), strict=True) if hit)
        leaks = Counter(row["label"] for row, hit in zip(natural, index.hits([row["text"] for row in natural]), strict=True) if hit)
        unlike = sum(not row["same_template"] for row in negatives)
        rewritten = total.total() - total["paraphrase_llm"]
        figures[name] = {
            "variants": f"{right.total() - right['paraphrase_llm']} of {rewritten}",
            "paraphrases": f"{right['paraphrase_llm']} of {total['paraphrase_llm']}",
            "false positives": f"{wrong[False]} of {unlike}",
            "template siblings": f"{wrong[True]} of {len(negatives) - unlike}",
            "real leaks": f"{leaks['contaminated']} of {sum(row['label'] == 'contaminated' for row in natural)}",
            "real siblings": f"{leaks['different_problem']} of {sum(row['label'] != 'contaminated' for row in natural)}",
            "missed": {kind: total[kind] - right[kind] for kind in sorted(total) if right[kind] < total[kind]},
        }
    columns = ("variants", "paraphrases", "false positives", "template siblings", "real leaks", "real siblings")
    print(f"{'':<24}" + "".join(f"{column:>19}" for column in columns))
    for name, entry in figures.items():
        print(f"{name:<24}" + "".join(f"{entry[column]:>19}" for column in columns))
    return figures


def rollouts(data: Path) -> dict[str, Any]:
    """Rollouts that `difficulty.stop` needs of 64 a problem for the band [.2, .8], over problems with the pass rates of real graded outputs."""
    graded = Counter()
    right = Counter()
    for row in read(data / "graded" / "math_qwen25_100x8.jsonl"):
        key = row.get("problem_id") or row.get("question") or row.get("problem")
        graded[key] += 1
        right[key] += bool(row.get("correct", row.get("label")))
    rates = [right[key] / graded[key] for key in sorted(graded, key=str)]
    rng = random.Random(1)
    figures = {}
    for rule in ("certain", "interval"):
        used = agree = 0
        for rate in rates:
            outcomes = [rng.random() < rate for _ in range(64)]
            count = next(n for n in range(2, 66, 2) if decided(sum(outcomes[:n]), n, 64 - n, (0.2, 0.8), rule))
            used += count
            inside = [0.2 <= sum(part) / len(part) <= 0.8 for part in (outcomes[:count], outcomes)]
            agree += inside[0] == inside[1]
        figures[rule] = {"share of rollouts": round(used / (64 * len(rates)), 3), "same decision": f"{agree} of {len(rates)}"}
        print(f"rollouts, stop: {rule:<9} {figures[rule]['share of rollouts']:.1%} of 64 a problem; same decision for {figures[rule]['same decision']}")
    return figures


def scale(data: Path, folder: Path, sizes: Sequence[int]) -> list[Row]:
    """Seconds and memory of the steps at each size, and of a plain script at the largest."""
    figures = []
    print(f"{'rows':>10}{'step':>26}{'seconds':>10}{'rows/s':>12}{'GB':>7}{'dropped':>9}")
    for size in sizes:
        path = folder / f"{size}.parquet"
        write(path, data, size)
        for name, step in STEPS.items():
            entry = {"rows": size, "step": name} | measured(data, step, path)
            figures.append(entry)
            print(f"{size:>10,}{name:>26}{entry['seconds']:>10.1f}{size / entry['seconds']:>12,.0f}{entry['gigabytes']:>7.2f}{entry['dropped']:>9,}")
    entry = {"rows": sizes[-1], "step": "plain Python, any 8-gram"} | measured(data, "plain", folder / f"{sizes[-1]}.parquet")
    print(f"{entry['rows']:>10,}{entry['step']:>26}{entry['seconds']:>10.1f}{entry['rows'] / entry['seconds']:>12,.0f}{entry['gigabytes']:>7.2f}{entry['dropped']:>9,}")
    return [*figures, entry]


def measured(data: Path, step: str, path: Path) -> Row:
    """A step in a process of its own: what it prints, and its largest resident set."""
    command = [sys.executable, "-m", "benchmarks.curation", "--data", str(data), "--one", step, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watched, most = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            most = max(most, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    assert process.stdout is not None
    return json.loads(process.stdout.read()) | {"gigabytes": most / 1e9}


def one(data: Path, step: str, file: str) -> None:
    """Run one step on a file and print {seconds, dropped}: reading, the step, and writing what is kept and dropped."""
    items = [problem(row, "bench") for row in read(data / "decontam" / "benchmark_items.jsonl")]
    start = time.perf_counter()
    if step == "plain":
        dropped = plain([item.prompt for item in items], pq.read_table(file, columns=["prompt"]).column("prompt").to_pylist())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            settings = CurationSettings(steps=(step,), near_duplicates=NearDuplicateSettings())  # type: ignore[arg-type]
            ledger = curate_file(Path(file), folder / "kept", folder / "dropped", Inputs(settings, {"bench": items}), folder / "scratch")
        dropped = ledger[0]["dropped"]
    print(json.dumps({"seconds": time.perf_counter() - start, "dropped": dropped}))


def plain(items: Sequence[str], prompts: Sequence[str], n: int = 8) -> int:
    """How many prompts share an n-gram with an item: sets of tuples, as such scripts usually do it."""

    def grams(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z]+|\d+", text.lower())
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    known = set().union(*map(grams, items))
    return sum(not known.isdisjoint(grams(prompt)) for prompt in prompts)


def write(path: Path, data: Path, size: int) -> None:
    """`size` problems made of the real training files; the first so many of a larger file."""
    rows = expanded(data)
    with pq.ParquetWriter(path, PROBLEM_SCHEMA, compression="zstd") as writer:
        for start in range(0, size, 50_000):
            writer.write_table(problem_table([next(rows) for _ in range(min(50_000, size - start))]))


def expanded(data: Path) -> Iterator[Problem]:
    """Real problems with other numbers and names, some reworded; one in a thousand is a benchmark item with a word changed."""
    rng = random.Random(7)
    real = [row for name in ("gsm8k_train", "math_train7500", "dapo_math_17k", "deepscaler_sub1209") for row in read(data / "tasks" / f"{name}.jsonl")]
    items = read(data / "decontam" / "benchmark_items.jsonl")
    number = 0
    while True:
        for row in rng.sample(real, len(real)):
            text = row["question"]
            if number >= len(real):
                text = re.sub(r"\d+", lambda match: str(rng.randrange(10 ** len(match.group()))), text)
                text = text.replace(rng.choice(text.split()), rng.choice(NAMES), 1) if rng.random() < 0.5 else text
                text = " ".join(SYNONYMS.get(word, word) if rng.random() < 0.5 else word for word in text.split(" "))
            if rng.random() < 0.001:
                words = rng.choice(items)["text"].split(" ")
                words[rng.randrange(len(words))] = "indeed"
                text = " ".join(words)
            yield replace(problem({"text": text, "answer": "1", "id": str(number)}, "expanded"), source_id=str(number))
            number += 1


def problem(row: Row, source: str) -> Problem:
    answer = str(row["answer"])
    return Problem(problem_id(row["text"], answer), "math", row["text"], answer, "expression", "math", source=source, source_id=row["id"])


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
