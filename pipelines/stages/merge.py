"""Kind merge: several models become one, by the method that params name or by the one that validates best."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import asdict
from typing import Any

import numpy as np

from pipelines import generation, paths, seeding
from pipelines.config.checking import check
from pipelines.config.evaluation import MergeStage, SearchSettings
from pipelines.errors import InfrastructureError, UserError
from pipelines.evaluation.benchmarks import collect
from pipelines.evaluation.metrics import avg_at_k
from pipelines.evaluation.scores import rows_by_problem
from pipelines.evaluation.statistics import mean_interval, paired_difference
from pipelines.lineage.code import code_sha256
from pipelines.lineage.digests import combine, tree_sha256
from pipelines.merging import MergeConfig, merge
from pipelines.merging.search import Candidate, Choice, Part, Scores, grid, search
from pipelines.records import Outcome, Problem
from pipelines.stages import Context, rows
from pipelines.stages.judging import judge_of
from pipelines.store import read_problems, to_problems, write_json
from pipelines.verifiers import VerifierPool, require_sandbox_for


def run(context: Context) -> dict[str, float]:
    """Merge the models that params name into data/models/<NAME>. Returns what each expert changed, in shares of all parameters."""
    settings: MergeStage = context.settings
    names = settings.models
    chosen, record = Candidate(settings.method, settings.method, settings.settings), None
    if settings.search:
        chosen, record = _search(context, settings, settings.search, names)
    merged = chosen.models or names
    summary = merge(_config(context, chosen, merged), context.root / paths.model(context.stage), owned=True)
    context.journal.say(f"{chosen.name} of {', '.join(merged)}: {summary.tensors} tensors, {summary.parameters:,} parameters")
    metrics: dict[str, float] = {"experts": len(merged), "tensors": summary.tensors, "parameters": summary.parameters}
    for name, changed, alone, kept in zip(merged, summary.changed, summary.alone, summary.kept, strict=True):
        metrics |= {f"{name}_changed_share": changed, f"{name}_alone_share": alone}
        metrics |= {} if kept is None else {f"{name}_kept_share": kept}
    for text in summary.notices:
        context.notice(text)
    if record:
        write_json(context.root / paths.model(context.stage) / paths.SEARCH, record)
        metrics |= {f"search_{key}": record["difference"][key] for key in ("mean", "low", "high")} | {"search_trials": len(record["trials"])}
    return metrics


def _config(context: Context, candidate: Candidate, models: tuple[str, ...]) -> MergeConfig:
    settings: MergeStage = context.settings
    given = {
        "base": context.root / paths.model(settings.init),
        "models": tuple(context.root / paths.model(name) for name in models),
        "method": candidate.method,
        "settings": dict(candidate.settings),
        "dtype": settings.dtype,
        "tokenizer": settings.tokenizer,
        "seed": context.seed,
    }
    return check(MergeConfig, given, f"params.yaml: stages.{context.stage}")


def _search(context: Context, settings: MergeStage, wanted: SearchSettings, names: tuple[str, ...]) -> tuple[Candidate, dict[str, Any]]:
    """The merge that validates best, and the record of the search."""
    candidates = [next(grid(settings.method, settings.settings, {}))]
    for entry in wanted.candidates:
        candidates += grid(entry.method, entry.settings, entry.grid)
    for candidate in candidates:  # a misspelt one is told before hours of scoring
        _config(context, candidate, names).rule_for(1)
    parts = validation(context, wanted)
    with VerifierPool(judge=judge_of(context, wanted.judge, context.device)) as pool:
        scorer = _Scorer(context, wanted, names, parts, pool)
        choice = search(list({candidate.name: candidate for candidate in candidates}.values()), names, scorer.score, wanted.budget, wanted.greedy)
    record = _record(context, wanted, choice, scorer, {part: len(problems) for part, problems in parts.items()})
    return choice.winner, record


def validation(context: Context, wanted: SearchSettings) -> dict[Part, list[Problem]]:
    """Problems that no training has seen, in two halves, the same number of each domain in both as far as there are enough.

    Raises:
        UserError: there are too few, or one of them is a problem of a benchmark.
    """
    tested = {problem.problem_id for file in (context.root / paths.BENCHMARKS).glob("*.parquet") for problem in read_problems(file)}
    by_domain: dict[str, list[Problem]] = defaultdict(list)
    found = [problem for table in rows.select(context, wanted).values() for problem in to_problems(table)]
    for problem in sorted(found, key=lambda problem: seeding.key(context.seed, "merging.search", problem.problem_id)):
        if problem.problem_id in tested:
            raise UserError(f"{context.stage}.search: problem {problem.problem_id} is in a benchmark; curate with the step decontaminate")
        by_domain[problem.domain].append(problem)
    pairs = {domain: min(len(problems), wanted.problems) // 2 for domain, problems in sorted(by_domain.items())}
    if not any(pairs.values()):
        raise UserError(f"{context.stage}.search: {len(found)} problems are too few to choose with one half and to confirm with the other")
    return {
        "choose": [problem for domain, count in pairs.items() for problem in by_domain[domain][:count]],
        "confirm": [problem for domain, count in pairs.items() for problem in by_domain[domain][count : 2 * count]],
    }


class _Scorer:
    """Merges candidates into a scratch folder and has them answer validation problems; an interrupted search asks nothing twice."""

    def __init__(
        self, context: Context, wanted: SearchSettings, names: tuple[str, ...], parts: dict[Part, list[Problem]], pool: VerifierPool
    ) -> None:
        self.context, self.wanted, self.names, self.parts, self.pool = context, wanted, names, parts, pool
        self.folder = context.resume / "search"
        self.scores: dict[tuple[str, Part], Scores] = {}
        inputs = {name: tree_sha256(context.root / paths.model(name)) for name in (*context.settings.models_read, *wanted.reward_models_read)}
        code = {module: code_sha256(module) for module in ("pipelines.merging", "pipelines.evaluation.benchmarks")}
        asking = wanted.model_dump_json(include={"samples", "generation", "judge"})
        self.identity = {**inputs, **code, "asking": asking, "seed": str(context.seed)}
        require_sandbox_for(problem for problems in parts.values() for problem in problems)

    def score(self, candidate: Candidate, part: Part) -> Scores:
        """Share of correct responses per problem."""
        key = (candidate.name, part)
        if key not in self.scores:
            problems = self.parts[part]
            about = {"candidate": repr(candidate), "dtype": self.context.settings.dtype, **{str(i): p.problem_id for i, p in enumerate(problems)}}
            answers = self.folder / combine(self.identity | about)
            generator = functools.cache(functools.partial(self._generator, candidate))
            show = functools.partial(self._show, candidate)
            table = collect(generator, problems, self.wanted.samples, self.context.seed, self.pool, answers, show)
            answers_of, _ = rows_by_problem(table)
            self.scores[key] = np.array([_share([row.outcome for row in answers_of[problem.problem_id]]) for problem in problems])
            self.context.journal.say(f"{candidate.name}: {part} {self.scores[key].mean():.3f}")
        return self.scores[key]

    def _generator(self, candidate: Candidate) -> generation.Generator:
        folder = self.folder / "candidate"
        if candidate.method is None:
            folder = self.context.root / paths.model(candidate.models[0])
        else:
            merge(_config(self.context, candidate, candidate.models or self.names), folder, owned=True, empty=True)
        return generation.create(self.wanted.generation, folder, self.context.device)

    def _show(self, candidate: Candidate, done: int, total: int) -> None:
        self.context.journal.show(done, total, f"responses of {candidate.name}")


def _share(outcomes: list[str]) -> float:
    judged = [outcome for outcome in outcomes if outcome != Outcome.INFRASTRUCTURE.value]
    if not judged:
        raise InfrastructureError("no response to a validation problem could be judged")
    return avg_at_k(len(judged), judged.count(Outcome.CORRECT.value), 1)


def _record(context: Context, wanted: SearchSettings, choice: Choice, scorer: _Scorer, counts: dict[Part, int]) -> dict[str, Any]:
    """What was tried and what came of it, for search.json and MLflow."""
    stream = functools.partial(seeding.generator, context.seed, "merging.search", "bootstrap")
    trials = []
    for trial in choice.trials:
        values = scorer.scores.get((trial.candidate.name, "choose"))
        interval = {} if values is None else asdict(mean_interval(values, wanted.bootstrap, stream(trial.candidate.name)))
        trials.append({"name": trial.candidate.name, "method": trial.candidate.method, "settings": dict(trial.candidate.settings),
                       "models": list(trial.candidate.models or scorer.names), "mean": trial.mean, **interval})  # fmt: skip
    zeros = np.zeros_like(choice.difference)
    difference = asdict(paired_difference(choice.difference, zeros, wanted.bootstrap, stream("difference")))
    return {"trials": trials, "winner": choice.winner.name, "expert": choice.expert.name, "difference": difference, "problems": counts}
