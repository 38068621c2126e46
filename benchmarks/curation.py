"""Does curation find what it must, how fast, in how much memory: `python -m benchmarks.curation [--data ../shared/data] [--rows 1000000]`.

Found: recall by kind of variant, and false positives, of the sets in decontam/, with and without embeddings. Fast: rows expanded from the real
training files by a seeded generator (other numbers, other words in some, a few benchmark items among them) against the 1,849 benchmark items:
n-gram decontamination and near-duplicate removal, each in a process of its own, at 10 k to 1 M rows, with the largest resident set; and a plain
Python scripts on the same rows. Rollouts: what early stopping spares of grading, on pass rates drawn from the real grades.
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
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config.curation import CurationSettings, DecontaminationSettings
from pipelines.curation.decontamination import Index
from pipelines.curation.difficulty import decided
from pipelines.curation.engines import Local
from pipelines.curation.normalise import without_wrapper
from pipelines.curation.run import curate_file
from pipelines.curation.steps import Inputs
from pipelines.curation.words import words_of
from pipelines.models.packaged import installed
from pipelines.records import PROBLEM_SCHEMA, Problem, problem_id
from pipelines.store import problem_table

Row = dict[str, Any]
EMBEDDING = "all-MiniLM-L6-v2"
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
NGRAMS = {"n": 8, "rule": "containment", "threshold": 0.5, "siblings": "drop", "paraphrases": None}
STEPS: dict[str, Row] = {
    "8-gram decontamination": {"steps": ["decontaminate"], "decontamination": NGRAMS},
    "and siblings, rewordings": {"steps": ["decontaminate"]},
    "near duplicates": {"steps": ["near_dedup"]},
}
MATCHING = "8-gram matching alone"
PLAIN = ("plain, any 8-gram", "plain, the same rule")
REAL = ("gsm8k_train", "math_train7500", "dapo_math_17k", "deepscaler_sub1209")
SYNONYMS = {"many": "numerous", "total": "overall", "each": "every", "buys": "purchases", "find": "determine", "such": "so", "number": "count"}
NAMES = ("Ana", "Bo", "Carla", "Dev", "Elif", "Farid", "Gina", "Hugo", "Ines", "Jun")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curation", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with decontam/, tasks/ and graded/")
    parser.add_argument("--rows", type=int, default=SIZES[-1], help="largest number of rows")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
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
    right: dict[str, list[bool]] = {}
    for row in read(data / "graded" / "math_qwen25_100x8.jsonl"):
        right.setdefault(row["question"], []).append(row["label"] is True)
    rates = [sum(outcomes) / len(outcomes) for outcomes in right.values()]
    rng = random.Random(1)
    figures = {}
    for samples, band in ((8, (0.1, 0.9)), (64, (0.2, 0.8))):
        drawn = [[rng.random() < rate for _ in range(samples)] for rate in rates]
        for rule in ("certain", "interval"):
            used = agree = 0
            for outcomes in drawn:
                count = next(n for n in range(2, samples + 2, 2) if decided(sum(outcomes[:n]), n, samples - n, band, rule))  # type: ignore[arg-type]
                used += count
                inside = [band[0] <= sum(part) / len(part) <= band[1] for part in (outcomes[:count], outcomes)]
                agree += inside[0] == inside[1]
            entry = {"share of rollouts": round(used / (samples * len(rates)), 3), "same decision": f"{agree} of {len(rates)}"}
            figures[f"{rule}, {samples} samples, band {list(band)}"] = entry
    for name, entry in figures.items():
        print(f"rollouts, {name:<42}{entry['share of rollouts']:>8.1%}   same decision for {entry['same decision']}")
    return figures


def scale(data: Path, folder: Path, sizes: Sequence[int]) -> list[Row]:
    """Seconds and memory of the steps at each size, and of plain scripts at the largest."""
    figures = []
    print(f"{'rows':>10}{'':>28}{'seconds':>9}{'rows/s':>10}{'GB':>7}{'dropped':>9}")
    for size in sizes:
        path = folder / f"{size}.parquet"
        write(path, data, size)
        for name in (*STEPS, MATCHING, *(PLAIN if size == sizes[-1] else ())):
            entry = {"rows": size, "step": name} | measured(data, name, path)
            figures.append(entry)
            rate = size / entry["seconds"]
            print(f"{size:>10,}{name:>28}{entry['seconds']:>9.1f}{rate:>10,.0f}{entry['gigabytes']:>7.2f}{entry['dropped']:>9,}", flush=True)
    return figures


def measured(data: Path, name: str, path: Path) -> Row:
    """A step in a process of its own: what it prints, and its largest resident set."""
    command = [sys.executable, "-m", "benchmarks.curation", "--data", str(data), "--one", name, str(path)]
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


def one(data: Path, name: str, file: str) -> None:
    """Run one step on a file and print {seconds, dropped}: reading, the step, and writing what is kept and dropped."""
    items = [problem(row, "bench") for row in read(data / "decontam" / "benchmark_items.jsonl")]
    start = time.perf_counter()
    if name in PLAIN:
        prompts = pq.read_table(file, columns=["prompt"]).column("prompt").to_pylist()
        script = plain_any if name == PLAIN[0] else plain_containment
        dropped = script([item.prompt for item in items], prompts)
    elif name == MATCHING:
        index = Index([item.prompt for item in items], DecontaminationSettings.model_validate(NGRAMS))

        def look(table: pa.Table) -> pa.Table:
            return pa.table({"hit": [hit is not None for hit in index.hits(table.column("prompt"))]})

        dropped = sum(sum(table.column("hit").to_pylist()) for table in Local(2).map([Path(file)], look))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            inputs = Inputs(CurationSettings.model_validate(STEPS[name]), {"bench": items})
            dropped = curate_file(Path(file), folder / "kept", folder / "dropped", inputs, folder / "scratch")[0]["dropped"]
    print(json.dumps({"seconds": time.perf_counter() - start, "dropped": dropped}))


def plain_any(items: Sequence[str], prompts: Sequence[str], n: int = 8) -> int:
    """How many prompts share an n-gram with an item: the shortest script that asks less than the rule above, and does not read LaTeX."""

    def grams(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z]+|\d+", text.lower())
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    known = set().union(*map(grams, items))
    return sum(not known.isdisjoint(grams(prompt)) for prompt in prompts)


def plain_containment(items: Sequence[str], prompts: Sequence[str], n: int = 8, threshold: float = 0.5) -> int:
    """The rule `containment`, with the same words, by dictionaries of n-grams; it must drop as many rows."""

    def grams(text: str) -> list[tuple[str, ...]]:
        words = words_of(without_wrapper(text))
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    texts = {tuple(words_of(item)) for item in items}
    sizes = []
    owners: dict[tuple[str, ...], list[int]] = {}
    for number, item in enumerate(items):
        distinct = set(grams(item))
        sizes.append(len(distinct))
        for gram in distinct:
            owners.setdefault(gram, []).append(number)
    dropped = 0
    for prompt in prompts:
        positions, shared = Counter[int](), Counter[int]()
        of_row = grams(prompt)
        for gram in of_row:
            positions.update(owners.get(gram, ()))
        for gram in set(of_row):
            shared.update(owners.get(gram, ()))
        overlaps = any(positions[item] / len(of_row) >= threshold or shared[item] / sizes[item] >= threshold for item in shared)
        dropped += overlaps or tuple(words_of(without_wrapper(prompt))) in texts
    return dropped


def write(path: Path, data: Path, size: int) -> None:
    """`size` problems made of the real training files; the first so many of a larger file."""
    rows = expanded(data)
    with pq.ParquetWriter(path, PROBLEM_SCHEMA, compression="zstd") as writer:
        for start in range(0, size, 50_000):
            writer.write_table(problem_table([next(rows) for _ in range(min(50_000, size - start))]))


def expanded(data: Path) -> Iterator[Problem]:
    """Real problems with other numbers and names, some reworded; one in a thousand is a benchmark item with a word changed."""
    rng = random.Random(7)
    real = [row for name in REAL for row in read(data / "tasks" / f"{name}.jsonl")]
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
