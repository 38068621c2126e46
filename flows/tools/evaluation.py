"""`touchstone evaluate`: a model folder on a file of problems."""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

from flows.tools import rows
from pipelines.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a folder in Hugging Face format, or a hub id")
    parser.add_argument("--benchmark", type=Path, required=True, metavar="FILE", help="JSONL or Parquet of problems with answers")
    parser.add_argument("--samples", type=int, default=8, help="responses per problem (8)")
    parser.add_argument("--k", type=int, action="append", help="k of pass@k; may be repeated (1 and the number of samples)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest response (512)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (1.0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus mass (1.0)")
    parser.add_argument(
        "--engine", choices=["torch", "vllm", "vllm_server", "server"], default="torch",
        help="what samples (torch); `server` asks the endpoint in TOUCHSTONE_GENERATION_URL and takes the tokenizer alone from MODEL",
    )  # fmt: skip
    parser.add_argument("--served-model", default="", metavar="NAME", help="the model's name at the endpoint of --engine server")
    parser.add_argument("--limit", type=int, help="first problems only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="DIR", help="gets every response with its verdict, and the scores")


def evaluate(options: argparse.Namespace) -> int:
    from pipelines import generation
    from pipelines.config import check
    from pipelines.config.common import GenerationSettings
    from pipelines.evaluation.benchmarks import collect
    from pipelines.evaluation.scores import score_benchmark
    from pipelines.progress import Journal
    from pipelines.store import replacing_folder, write_json, write_table
    from pipelines.verifiers import VerifierPool, require_sandbox_for

    given = {"engine": options.engine, "max_new_tokens": options.max_new_tokens, "temperature": options.temperature, "top_p": options.top_p}
    given |= {"server": {"model": options.served_model}} if options.served_model else {}
    settings = check(GenerationSettings, given, "evaluate")
    ks = sorted({1, *(options.k or [options.samples])})
    if options.samples < 1 or ks[0] < 1 or ks[-1] > options.samples:
        raise UserError(f"evaluate: --samples and --k must be at least 1 and no k above the samples, got {options.samples} samples and k {ks}")
    read, bad = rows.read(options.benchmark)
    problems = list({problem.problem_id: problem for problem in read}.values())[: options.limit]  # a repeated one would count twice
    if not problems:
        raise UserError(f"{options.benchmark}: no problem in it" + (f"; the first row is malformed: {bad[0].reason}" if bad else ""))
    require_sandbox_for(problems)
    name, device = options.benchmark.stem, os.environ.get("TOUCHSTONE_DEVICE", "cpu")
    model = options.model if options.model.is_dir() else str(options.model)
    with tempfile.TemporaryDirectory() as scratch, VerifierPool() as pool:
        journal = Journal(Path(scratch) / "journal.jsonl", name)
        generator = partial(generation.create, settings, model, device)
        table = collect(generator, problems, options.samples, options.seed, pool, Path(scratch), journal.show)
    result = score_benchmark({"model": table}, ks, [], 10_000, options.seed, name)
    figures = result["models"]["model"]
    if options.out:
        with replacing_folder(options.out) as folder:
            write_table(folder / "samples.parquet", table)
            write_json(
                folder / "scores.json", {"model": str(options.model), "benchmark": str(options.benchmark), "seed": options.seed, **given, **result}
            )
    print(f"{options.model} on {name}: {result['problems']} problems, {options.samples} samples each")
    print(f"  {len(bad)} malformed and {len(read) - len({row.problem_id for row in read})} repeated rows left out")
    for kind, values in (("pass", figures["pass_at_k"]), ("maj", figures["maj_at_k"])):
        for k, interval in values.items():
            print(f"  {kind}@{k:<3} {interval['mean']:.4f}  95 % [{interval['low']:.4f}, {interval['high']:.4f}]")
    constant = result["constant_answer"]
    print(f"  always answering the most common gold: {constant['share']:.4f}")
    print(
        "  "
        + ", ".join(f"{outcome} {count}" for outcome, count in sorted(figures["outcomes"].items()))
        + f", mean tokens {figures['mean_tokens']:.1f}"
    )
    return 0
