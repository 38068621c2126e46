"""What a small teacher on this machine is worth: `python -m benchmarks.teacher [--teacher qwen2.5-coder-1.5b-instruct] [--endpoint URL]`.

The teacher answers behind llama.cpp through the OpenAI-compatible client; the student is SmolLM2-135M-Instruct. Real problems of data/examples:

    solve      50 problems that the student's greedy answer fails: curation's step `solve`; then one SFT on what was kept, and the student again
    judge      50 answers of that student, half of them right by the rules: `touchstone verify` with verifier `judge` and --agreement, with the
               reference answer and without
    synthesis  20 problems from the weakest topics (SwS), their answers by 5 votes, then curation against the test files: what each gate refused

Nothing that is reported on is trained on: problems come from the train files, answers and pass rates from the dev files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from benchmarks.policies import PROMPT, brought, examples, taught
from pipelines.chat import ChatClient
from pipelines.config.common import GenerationSettings
from pipelines.config.curation import CurationSettings, TeacherSettings
from pipelines.curation.run import curate
from pipelines.evaluation.statistics import wilson
from pipelines.generation import TorchGenerator, respond
from pipelines.models.fetching import fetch
from pipelines.models.known import known_model
from pipelines.models.serving import Serving, served
from pipelines.records import Problem, Verdict
from pipelines.synthesis import teacher
from pipelines.synthesis.weakness import topics_of
from pipelines.verifiers import VerifierPool

STUDENT = "smollm2-135m-instruct"
TIMEOUT = 1800.0
"""Seconds for one request, of which several wait for two cores."""
EPOCHS = 4
SAMPLES = 4
GRADED = 30
"""Problems of a topic whose pass rate is measured."""
AGREEMENT = 0.8
"""Share of judgements that must be right, at the lower end of the interval."""
TOPICS = ("mawps_train", "svamp_train", "gsm8k_short")
TESTS = ("mawps_test", "svamp_test", "gsm8k_test")
DEV = ("mawps_dev", "svamp_dev")


class Student:
    """The small model and what it answers. temperature 0 is greedy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy, self.tokenizer = brought(folder / "base", STUDENT)

    def answers(self, problems: Sequence[Problem], samples: int, temperature: float) -> Iterator[tuple[Problem, list[str], list[Verdict]]]:
        settings = {"max_new_tokens": 64, "batch_size": 128, "precision": "auto", "temperature": temperature, "prompt": PROMPT}
        generator = TorchGenerator(self.policy, self.tokenizer, GenerationSettings.model_validate(settings))
        texts = [[sample.text for sample in group] for group in respond(generator, problems, samples, ("teacher",))]
        with VerifierPool() as pool:
            for problem, group in zip(problems, texts, strict=True):
                yield problem, group, pool.verify_batch([(problem, text) for text in group])

    def learn(self, worked: list[Problem]) -> None:
        (self.folder / "sft").mkdir()
        taught(self.folder / "sft", self.policy, self.tokenizer, worked, EPOCHS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teacher", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="qwen2.5-coder-1.5b-instruct", help="a known model")
    parser.add_argument("--endpoint", metavar="URL", help="where the teacher answers already; without, this starts it")
    parser.add_argument("--problems", type=int, default=50, help="problems to solve, and answers to judge")
    parser.add_argument("--new", type=int, default=20, help="problems to write; 0 writes none")
    parser.add_argument("--only-synthesis", action="store_true", help="write problems, and nothing else")
    options = parser.parse_args()
    figures: dict[str, Any] = {"teacher": options.teacher}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        student = Student(folder)
        weak = list(graded(student)) if options.new else []
        with endpoint(options) as url:
            client = ChatClient(url, options.teacher, os.environ.get("TOUCHSTONE_TEACHER_KEY"), timeout=TIMEOUT)
            if not options.only_synthesis:
                figures |= answered_and_judged(folder, student, client, url, options)
            if weak:
                figures["synthesis"] = synthesis(weak, options.new, client, options.teacher)
                said(f"synthesis: {figures['synthesis']}")
    print(json.dumps(figures))


def answered_and_judged(folder: Path, student: Student, client: ChatClient, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of `solve`, of the student that learned from it, and of `judge`."""
    figures: dict[str, Any] = {}
    failed = [problem for problem, _, verdicts in student.answers(pool(4 * options.problems), 1, 0.0) if not verdicts[0].correct]
    solved, figures["solve"] = solve(failed[: options.problems], client)
    said(f"solve: {figures['solve']}")
    figures["student"], answered = learn(student, solved)
    said(f"student: {figures['student']}")
    for reference in (True, False):
        name = f"judge {'with' if reference else 'without'} the reference"
        figures[name] = judge(folder, url, options.teacher, balanced(answered, options.problems), reference)
        said(f"{name}: {figures[name]}")
    return figures


def said(text: str) -> None:
    print(text, flush=True)


@contextmanager
def endpoint(options: argparse.Namespace) -> Iterator[str]:
    if options.endpoint:
        yield options.endpoint
        return
    with served(fetch(known_model(options.teacher), None), options.teacher, Serving(key=os.environ.get("TOUCHSTONE_TEACHER_KEY"))) as url:
        yield url


def pool(most: int) -> list[Problem]:
    """Train problems of two files in turn, without their solutions."""
    pairs = zip_longest(examples("mawps_train"), examples("gsm8k_short"))
    rows = [problem for problem in chain.from_iterable(pairs) if problem is not None]
    return [replace(problem, solution=None) for problem in rows[:most]]


def graded(student: Student) -> Iterator[Problem]:
    """Problems with the student's pass rate; their file is their topic."""
    for name in TOPICS:
        rows = list(examples(name))[-GRADED:]
        for problem, _, verdicts in student.answers(rows, SAMPLES, 1.0):
            rate = sum(verdict.correct for verdict in verdicts) / SAMPLES
            yield replace(problem, topics=(name.partition("_")[0],), pass_rate=rate, pass_n=SAMPLES)


def solve(problems: list[Problem], client: ChatClient) -> tuple[list[Problem], dict[str, Any]]:
    """Rows with a worked solution, and how many there are after the first try and after the second."""
    start = time.perf_counter()
    counts = []
    rows = problems
    for tries in (1, 2):
        settings = {"steps": ["solve"], "endpoint": {"max_tokens": 512}, "solving": {"tries": tries}}
        curated = curate(rows, {}, CurationSettings.model_validate(settings), client=client)
        rows = curated.kept
        counts.append(sum(problem.solution is not None for problem in rows))
    seconds = time.perf_counter() - start
    worked = [problem for problem in rows if problem.solution is not None]
    return worked, {"asked": len(problems), "solved": counts, "share": interval(counts[-1], len(problems)), "seconds": round(seconds)}


def learn(student: Student, worked: list[Problem]) -> tuple[dict[str, Any], list[tuple[Problem, str, Verdict]]]:
    """The student's mean accuracy on the dev files before and after SFT on `worked`, and its answers afterwards."""
    problems = [problem for name in DEV for problem in examples(name)]
    before = [verdict.correct for _, _, verdicts in student.answers(problems, SAMPLES, 1.0) for verdict in verdicts]
    student.learn(worked)
    answered = [
        (problem, text, verdict)
        for problem, texts, verdicts in student.answers(problems, SAMPLES, 1.0)
        for text, verdict in zip(texts, verdicts, strict=True)
    ]
    after = [verdict.correct for _, _, verdict in answered]
    return {"solutions": len(worked), "before": sum(before) / len(before), "after": sum(after) / len(after), "answers": len(after)}, answered


def balanced(answered: Sequence[tuple[Problem, str, Verdict]], most: int) -> list[tuple[Problem, str, Verdict]]:
    """As many right answers as wrong ones, one of each problem at most, `most` in all."""
    chosen: list[tuple[Problem, str, Verdict]] = []
    for wanted in (True, False):
        seen = {problem.problem_id for problem, _, _ in chosen}
        for problem, text, verdict in answered:
            if verdict.correct is wanted and problem.problem_id not in seen and len(chosen) < (most // 2 if wanted else most):
                seen.add(problem.problem_id)
                chosen.append((problem, text, verdict))
    return chosen


def judge(folder: Path, url: str, model: str, answered: Sequence[tuple[Problem, str, Verdict]], reference: bool) -> dict[str, Any]:
    """What `touchstone verify` says of the judge, and the counts behind it."""
    described = "The final answer is the correct answer to the problem."
    args = {"model": model, "timeout": TIMEOUT} | ({} if reference else {"rubric": [{"name": "correctness", "description": described}]})
    rows = [
        {
            "prompt": problem.prompt, "answer": problem.answer if reference else "", "prediction": text, "verifier": "judge",
            "verifier_args": args, "expected": "correct" if verdict.correct else "wrong",
        }
        for problem, text, verdict in answered
    ]  # fmt: skip
    (folder / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "flows.cli", "verify", str(folder / "judged.jsonl"), "--out", str(folder / "verdicts.jsonl")]
    environment = os.environ | {"TOUCHSTONE_JUDGE_URL": url, "TOUCHSTONE_JUDGE_KEY": os.environ.get("TOUCHSTONE_TEACHER_KEY", "")}
    start = time.perf_counter()
    done = subprocess.run([*command, "--agreement", str(AGREEMENT)], env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    verdicts = [json.loads(line)["outcome"] for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    counts = Counter(f"{row['expected']} judged {outcome}" for row, outcome in zip(rows, verdicts, strict=True))
    sentence = next(line for line in done.stdout.splitlines() if line.startswith("agreement"))
    return {"said": sentence, "refused": bool(done.returncode), "counts": dict(sorted(counts.items())), "seconds": round(seconds)}


def synthesis(weak: Sequence[Problem], budget: int, client: ChatClient, model: str) -> dict[str, Any]:
    """How many problems each gate refused, in order, and what is left."""
    topics = topics_of(weak, 0.6)
    start = time.perf_counter()
    proposals = teacher.propose(topics, budget, client, TeacherSettings(model=model, max_tokens=512), 1)
    steps = ["normalise", "filters", "exact_dedup", "near_dedup", "decontaminate", "audit"]
    known = [problem for name in TOPICS for problem in examples(name)]
    tests = {name: list(examples(name)) for name in TESTS}
    curated = curate(proposals.problems, tests, CurationSettings.model_validate({"steps": steps}), known=known)
    gates = Counter(row.reason for row in [*proposals.dropped, *curated.dropped])
    asked = sum(proposals.proposed.values())
    return {
        "topics": {topic.topics[0]: round(topic.pass_rate, 3) for topic in topics},
        "asked": asked,
        "refused": dict(gates),
        "kept": interval(len(curated.kept), asked),
        "seconds": round(time.perf_counter() - start),
        "examples": [{"prompt": problem.prompt, "answer": problem.answer} for problem in curated.kept[:5]],
    }


def interval(count: int, of: int) -> dict[str, Any]:
    """A count with Wilson's interval of its share."""
    low, high = wilson(count, of)
    return {"count": count, "share": round(count / of, 3), "low": round(low, 3), "high": round(high, 3)}


if __name__ == "__main__":
    main()
