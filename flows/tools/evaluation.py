"""`touchstone evaluate`: a checkpoint on a benchmark. `touchstone compare`: two that have been evaluated, problem by problem."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import paths
from pipelines.errors import UserError
from pipelines.sources import loose

if TYPE_CHECKING:
    from pipelines.config.common import GenerationSettings

SAMPLES = "samples.parquet"
SCORES = "scores.json"
FILES = (".jsonl", ".ndjson", ".json", ".parquet")
RESAMPLES = 10_000
TAUS = (0.25, 0.5, 0.75)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a folder in Hugging Face format, or a hub id")
    where = "JSONL or Parquet of problems with answers, or a Hugging Face dataset (folder or hub id)"
    parser.add_argument("--benchmark", type=Path, required=True, metavar="FILE", help=where)
    mapping = "field of a problem and the column it comes from, such as prompt=question; may be repeated (found by the usual names)"
    parser.add_argument("--map", action="append", default=[], metavar="FIELD=COLUMN", help=mapping)
    parser.add_argument("--split", default="test", help="split of a Hugging Face dataset (test)")
    parser.add_argument("--name", help="configuration of a Hugging Face dataset")
    parser.add_argument("--verifier", help="verifier of rows that name none (math)")
    parser.add_argument("--answer-type", help="answer type of rows that name none (expression)")
    parser.add_argument("--samples", type=int, default=8, help="responses per problem (8)")
    parser.add_argument("--k", type=int, action="append", help="k of pass@k; may be repeated (1 and the number of samples)")
    parser.add_argument("--params", type=Path, metavar="params.yaml", help="sample as evaluation.generation of this file says, prompt included")
    parser.add_argument("--system", metavar="TEXT", help="system message (the one that asks for a boxed answer)")
    parser.add_argument("--max-new-tokens", type=int, help="longest response (512)")
    parser.add_argument("--temperature", type=float, help="0 is greedy (1.0)")
    parser.add_argument("--top-p", type=float, help="nucleus mass (1.0)")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "auto"], help="of engine torch (float32)")
    parser.add_argument(
        "--engine", choices=["torch", "vllm", "vllm_server", "server"],
        help="what samples (torch); `server` asks the endpoint in TOUCHSTONE_GENERATION_URL and takes the tokenizer alone from MODEL",
    )  # fmt: skip
    parser.add_argument("--served-model", default="", metavar="NAME", help="the model's name at the endpoint of --engine server")
    parser.add_argument("--batch-size", type=int, help="responses that decode together; changes memory and speed, not results (256)")
    voting = "ask 5 answers a level until all of one agree, at most so many levels, each twice as long, beside the rest (0, which does not)"
    parser.add_argument("--vote-levels", type=int, default=0, metavar="N", help=voting)
    parser.add_argument("--limit", type=int, help="first problems only")
    parser.add_argument("--cluster-by", metavar="LABEL", help="label of the topics that say which problems belong together (passage)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="DIR", help="gets every response with its verdict, the scores, and both in lm-eval's layout")


def comparing(parser: argparse.ArgumentParser) -> None:
    what = "what `evaluate --out` wrote, a folder or file of samples, or a model of data/evaluation"
    parser.add_argument("a", metavar="A", help=what)
    parser.add_argument("b", metavar="B", help="the same")
    parser.add_argument("--k", type=int, action="append", help="k of pass@k; may be repeated (1 and the number of samples)")
    parser.add_argument("--cluster-by", metavar="LABEL", help="label of the topics that say which problems belong together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json: one object a line")


def evaluate(options: argparse.Namespace) -> int:
    from pipelines import generation
    from pipelines.evaluation import adaptive_voting, lm_eval
    from pipelines.evaluation.benchmarks import collect, parts_of
    from pipelines.evaluation.scores import score_benchmark
    from pipelines.lineage.digests import tree_sha256
    from pipelines.outputs import OutputFolder
    from pipelines.parts import shared
    from pipelines.progress import Journal
    from pipelines.store import write_json, write_table
    from pipelines.verifiers import VerifierPool, require_sandbox_for

    out = OutputFolder(options.out, [options.model, options.benchmark]) if options.out else None
    settings = _generation(options)
    ks = sorted({1, *(options.k or [options.samples])})
    if options.samples < 1 or ks[0] < 1 or ks[-1] > options.samples:
        raise UserError(f"evaluate: --samples and --k must be at least 1 and no k above the samples, got {options.samples} samples and k {ks}")
    read, bad = loose.read(options.benchmark, _source(options))
    problems = list({problem.problem_id: problem for problem in read}.values())[: options.limit]  # a repeated one would count twice
    if not problems:
        raise UserError(f"{options.benchmark}: no problem in it" + (f"; the first row is malformed: {bad[0].field} {bad[0].reason}" if bad else ""))
    if options.vote_levels < 0 or (options.vote_levels and any(problem.answer_type == "program" for problem in problems)):
        raise UserError(f"evaluate: --vote-levels takes 0 or more, and no programs, of which no two are the same answer, got {options.vote_levels}")
    require_sandbox_for(problems)
    name, device = options.benchmark.stem, os.environ.get("TOUCHSTONE_DEVICE", "cpu")
    model = options.model if options.model.is_dir() else str(options.model)
    weights = tree_sha256(model) if isinstance(model, Path) else model
    work = paths.WORK / "evaluate"
    parts = parts_of(work, weights, problems, options.samples, settings, options.seed, device)
    with shared(parts), VerifierPool() as pool:
        journal = Journal(work / "journal.jsonl", name)
        create = partial(generation.create, model=model, device=device)
        votes = adaptive_voting.vote(create, settings, problems, pool, options.seed, levels=options.vote_levels)
        generator = partial(create, settings)
        table = collect(generator, problems, options.samples, options.seed, pool, parts, journal.show)
        scored = score_benchmark({"model": table}, ks, [], RESAMPLES, options.seed, name, taus=TAUS, cluster_by=options.cluster_by)
        if votes:
            scored["adaptive_vote"] = adaptive_voting.summary(votes, table)
        if out:
            with out.replacing() as folder:
                write_table(folder / SAMPLES, table)
                about = {"model": str(options.model), "benchmark": str(options.benchmark), "seed": options.seed}
                write_json(folder / SCORES, {**about, **settings.model_dump(mode="json"), **scored})
                found = {name: scored["models"]["model"]}
                lm_eval.write(folder / "lm_eval", str(options.model), {name: table}, found, settings, options.samples, options.seed)
    print(f"{options.model} on {name}: {scored['problems']} problems, {options.samples} samples each")
    print(f"  {len(bad)} malformed and {len(read) - len({row.problem_id for row in read})} repeated rows left out")
    print("\n".join(_lines(scored["models"]["model"])))
    if voted := scored.get("adaptive_vote"):
        for title, key in (("adaptive vote", ""), ("majority", "majority_")):
            spent = f"{voted[f'{key}samples']:.1f} answers, {voted[f'{key}tokens']:.0f} tokens a problem"
            print(f"  {title:<16} {voted[f'{key}accuracy']:.4f}  of {spent}")
    print(f"  always answering the most common gold: {scored['constant_answer']['share']:.4f}")
    return 0


def _generation(options: argparse.Namespace) -> GenerationSettings:
    """How to sample: the options, over what a file of params says or else over this command's defaults."""
    from pipelines.config import check, load
    from pipelines.config.common import GenerationSettings

    start = load(options.params).evaluation.generation.model_dump() if options.params else {"max_new_tokens": 512}
    names = ("engine", "max_new_tokens", "temperature", "top_p", "precision", "batch_size")
    given = start | {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.system is not None:
        given["prompt"] = {**start.get("prompt", {}), "system": options.system}
    if options.served_model:
        given["server"] = {**start.get("server", {}), "model": options.served_model}
    return check(GenerationSettings, given, "evaluate")


def _source(options: argparse.Namespace) -> dict[str, Any]:
    """What the options say of the benchmark's rows."""
    fields = {}
    for pair in options.map:
        field, equals, column = pair.partition("=")
        if not (equals and field and column):
            raise UserError(f"evaluate: --map takes FIELD=COLUMN, such as prompt=question, got '{pair}'")
        fields[field] = column
    given = {"kind": "file" if options.benchmark.suffix in FILES else "huggingface", "split": options.split, "name": options.name, "fields": fields}
    return given | {key: value for key in ("verifier", "answer_type") if (value := getattr(options, key))}


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Every figure with its interval, one a line."""
    for title, key in (("pass@", "pass_at_k"), ("pass^", "pass_hat_k"), ("maj@", "maj_at_k"), ("worst@", "worst_at_k"), ("mG-pass@", "mg_pass_at_k")):
        for k, interval in figures[key].items():
            if key == "pass_at_k" or int(k) > 1:
                yield _line(f"{title}{k}{' = avg@k' if k == '1' else ''}", interval)
    for tau, interval in figures["g_pass_at_k"].items():
        yield _line(f"G-pass tau {tau}", interval)
    named = {"format_validity": "well-formed", "truncated": "cut off", "tokens": "tokens", "answer_entropy": "answer entropy"}
    for key, title in named.items():
        if key in figures:
            yield _line(title, figures[key])
    if calibration := figures["calibration"]:
        yield _line("ECE", calibration["ece"])
        yield _line("Brier score", calibration["brier"]) + f"  of {calibration['responses']} stated confidences"
    yield "  " + ", ".join(f"{outcome} {count}" for outcome, count in sorted(figures["outcomes"].items()))


def _line(title: str, interval: Mapping[str, float]) -> str:
    return f"  {title:<16} {interval['mean']:.4f}  95 % [{interval['low']:.4f}, {interval['high']:.4f}]"


def compare(options: argparse.Namespace) -> int:
    from pipelines.evaluation.scores import judge_together, score_benchmark

    if options.a == options.b:
        raise UserError(f"compare: A and B are the same, '{options.a}'")
    first, second = _evaluated(options.a), _evaluated(options.b)
    shared = [name for name in first if name in second]
    if not shared:
        raise UserError(f"compare: no common benchmark: {options.a} has {', '.join(first)}; {options.b} has {', '.join(second)}")
    about: dict[str, dict[str, Any]] = {}
    for name in shared:
        tables = {options.a: first[name], options.b: second[name]}
        fewest = min(min(column.value_counts().field("counts").to_pylist()) for column in (table["problem_id"] for table in tables.values()))
        ks = sorted({1, *(options.k or [fewest])})
        if ks[0] < 1 or ks[-1] > fewest:
            raise UserError(f"compare: --k must lie between 1 and the samples of a problem, which on '{name}' are {fewest}, got {ks}")
        about[name] = score_benchmark(tables, ks, [(options.a, options.b)], RESAMPLES, options.seed, name, cluster_by=options.cluster_by)
    judged = judge_together([d for result in about.values() for d in result["differences"]])
    if options.format == "json":
        for d in judged:
            print(json.dumps(d))
        return 0
    print(f"A = {options.a}, B = {options.b}; 'better' says that A is")
    columns = ("benchmark", "metric", "problems", "A", "B", "A - B", "95 % interval", "p", "Holm p", "test", "")
    print("\n".join(_aligned([columns, *(_row(d, about[d["benchmark"]]) for d in judged)])))
    for name, result in about.items():
        if result["left_out"]:
            print(f"{name}: {result['left_out']} problems left out, which one of the two was not judged on often enough")
    return 0


def compared(found: Mapping[str, Mapping[str, Any]], seed: int = 1) -> Iterator[str]:
    """Each of several against the first, problem by problem: lines of a table. found: name -> benchmark -> samples."""
    from pipelines.evaluation.scores import judge_together, score_benchmark

    first, *others = found
    shared = [name for name in found[first] if all(name in found[other] for other in others)]
    pairs = [(other, first) for other in others]
    about = {name: score_benchmark({of: tables[name] for of, tables in found.items()}, [1], pairs, RESAMPLES, seed, name) for name in shared}
    yield f"pass@1, each against {first}; p is corrected over all of them (Holm)"
    cells = [("benchmark", "point", "pass@1", "difference", "95 % interval", "p", "Holm p", "")]
    for name in shared:
        cells.append((name, first, f"{about[name]['models'][first]['pass_at_k']['1']['mean']:.4f}", "", "", "", "", ""))
        for d in judge_together([d for result in about.values() for d in result["differences"]]):
            if d["benchmark"] == name:
                mean = about[name]["models"][d["model"]]["pass_at_k"]["1"]["mean"]
                interval = f"{d['low']:+.4f} to {d['high']:+.4f}"
                cells.append((name, d["model"], f"{mean:.4f}", f"{d['mean']:+.4f}", interval, f"{d['p']:.4f}", f"{d['p_holm']:.4f}", d["verdict"]))
    yield from _aligned(cells)


def _aligned(cells: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(d: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[str, ...]:
    a, b = (about["models"][d[key]]["pass_at_k"][str(d["k"])]["mean"] for key in ("model", "against"))
    figures = (f"{a:.4f}", f"{b:.4f}", f"{d['mean']:+.4f}", f"{d['low']:+.4f} to {d['high']:+.4f}", f"{d['p']:.4f}", f"{d['p_holm']:.4f}")
    return (d["benchmark"], f"pass@{d['k']}", str(d["count"]), *figures, d["test"], d["verdict"])


def _evaluated(where: str) -> dict[str, Any]:
    """Benchmark -> samples of what was evaluated."""
    from pipelines.evaluation.samples import read_samples
    from pipelines.store import read_json

    given = Path(where)
    if given.is_file():
        return {given.stem: read_samples(given)}
    if (given / SAMPLES).is_file():
        name = Path(read_json(given / SCORES)["benchmark"]).stem if (given / SCORES).is_file() else given.name
        return {name: read_samples(given / SAMPLES)}
    for folder in (given, paths.SAMPLES / where):
        if found := sorted(folder.glob("*.parquet")):
            return {file.stem: read_samples(file) for file in found}
    known = sorted(folder.name for folder in paths.SAMPLES.glob("*") if folder.is_dir())
    raise UserError(
        f"compare: '{where}' has not been evaluated: expected what `evaluate --out` wrote, samples, or one of {', '.join(known) or 'none'}"
    )
