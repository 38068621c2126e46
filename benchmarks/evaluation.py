"""`touchstone evaluate` beside lm-evaluation-harness: `python -m benchmarks.evaluation [--model NAME|FOLDER] [--limit 100]`.

The same model in float32, the GSM8K problems of data/examples/gsm8k_test.jsonl, the same system message, greedy, the same longest response; each side
in a process of its own on the same cores, lm-evaluation-harness 0.4.13 in a virtual environment that this benchmark makes, with a task for the file
that takes what stands behind `####`, as its GSM8K does. Printed: seconds of the whole command, how many responses are equal letter by letter, how
many verdicts differ, and each difference with both responses; the figures as one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.environments import environment
from benchmarks.policies import EXAMPLES, PROMPT, brought, cold_started

ROOT = Path(__file__).parents[1]
HARNESS = ("lm-eval==0.4.13", "torch==2.13.0", "transformers==5.24.0", "accelerate", "datasets")
LENGTH = 128
TASK = """task: gsm8k_file
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<|im_end|>"], do_sample: false, temperature: 0.0, max_gen_toks: {length}}}
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a known model, or a folder in Hugging Face format")
    parser.add_argument("--cold-start", action="store_true", help="a known model after SFT on worked solutions, which ends with #### as asked")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64, help="of both sides")
    parser.add_argument("--environment", type=Path, default=ROOT / ".touchstone" / "lm_eval", help="where the harness's environment is or is made")
    options = parser.parse_args()
    python = environment(options.environment, HARNESS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = prepared(folder, options.model, options.cold_start)
        rows = (EXAMPLES / "gsm8k_test.jsonl").read_text().splitlines()[: options.limit]
        problems = folder / "gsm8k.jsonl"
        problems.write_text("\n".join(rows) + "\n")
        ours, seconds = touchstone(folder, model, problems, options.batch_size)
        theirs, their_seconds = harness(folder, python, model, problems, options.batch_size)
    questions = [json.loads(row)["question"] for row in rows]
    different = [question for question in questions if ours[question][1] != theirs[question][1]]
    for question in different:
        print(f"{question}\n  touchstone, {'right' if ours[question][1] else 'wrong'}: {ours[question][0]!r}")
        print(f"  harness, {'right' if theirs[question][1] else 'wrong'}: {theirs[question][0]!r}")
    equal = sum(ours[question][0].strip() == theirs[question][0].strip() for question in questions)
    scores = [sum(side[question][1] for question in questions) for side in (ours, theirs)]
    print(f"right: touchstone {scores[0]}, harness {scores[1]} of {len(questions)}; verdicts that differ: {len(different)}; equal responses: {equal}")
    print(f"seconds of the command: touchstone {seconds:.1f}, harness {their_seconds:.1f}, {their_seconds / seconds:.1f} times")
    figures = {"problems": len(questions), "right": scores, "different": len(different), "equal": equal, "seconds": [seconds, their_seconds]}
    print(json.dumps({"model": options.model, "cold_start": options.cold_start, **figures}))


def prepared(folder: Path, model: str, cold: bool) -> Path:
    """The model's folder."""
    if Path(model).is_dir():
        return Path(model).resolve()
    if cold:
        cold_started(folder, model)
        return folder / "model"
    brought(folder / "base", model)
    return folder / "base"


Answers = dict[str, tuple[str, bool]]
"""Question -> (response, whether it counts as right)."""


def touchstone(folder: Path, model: Path, problems: Path, batch: int) -> tuple[Answers, float]:
    import pyarrow.parquet as pq

    command = [sys.executable, "-m", "flows.cli", "evaluate", str(model), "--benchmark", str(problems), "--samples", "1", "--temperature", "0"]
    command += ["--system", PROMPT["system"], "--max-new-tokens", str(LENGTH), "--batch-size", str(batch), "--out", str(folder / "ours")]
    seconds = timed(command, folder)
    rows = pq.read_table(folder / "ours" / "samples.parquet").to_pylist()
    return {row["prompt"]: (row["response"], row["outcome"] == "correct") for row in rows}, seconds


def harness(folder: Path, python: Path, model: Path, problems: Path, batch: int) -> tuple[Answers, float]:
    (folder / "tasks").mkdir()
    (folder / "tasks" / "gsm8k_file.yaml").write_text(TASK.format(file=problems, length=LENGTH))
    command = [str(python), "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", "gsm8k_file"]
    command += ["--include_path", str(folder / "tasks"), "--device", "cpu", "--batch_size", str(batch), "--apply_chat_template"]
    command += ["--system_instruction", PROMPT["system"], "--log_samples", "--output_path", str(folder / "theirs")]
    seconds = timed(command, folder)
    (file,) = (folder / "theirs").rglob("samples_*.jsonl")
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["doc"]["question"]: (row["resps"][0][0], bool(row["exact_match"])) for row in rows}, seconds


def timed(command: list[str], folder: Path) -> float:
    """Seconds of a whole command, without a network."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=os.environ | quiet, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:5])} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
