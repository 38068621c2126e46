"""What the kinds merge and extrapolate share that search: candidates are made, answer validation problems, and the best is compared with what was
there. Written as search.json beside the model."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import generation, paths, seeding
from pipelines.config.searching import SearchingSettings
from pipelines.errors import InfrastructureError, UserError
from pipelines.evaluation.benchmarks import collect
from pipelines.evaluation.metrics import avg_at_k
from pipelines.evaluation.scores import rows_by_problem
from pipelines.evaluation.statistics import mean_interval, paired_difference
from pipelines.lineage.code import code_sha256
from pipelines.lineage.digests import combine, tree_sha256
from pipelines.merging.search import Candidate, Choice, Part, Scores
from pipelines.records import Outcome, Problem
from pipelines.stages import Context, rows
from pipelines.store import read_problems, to_problems
from pipelines.verifiers import VerifierPool, require_sandbox_for


def validation(context: Context, wanted: SearchingSettings) -> dict[Part, list[Problem]]:
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


class Scorer:
    """Makes candidates in a scratch folder and has them answer validation problems; an interrupted search asks nothing twice.

    there: name -> folder of the models that are candidates as they are. make(candidate, folder): writes another one. reads: what else the candidates
    depend on, relative to the root.
    """

    def __init__(
        self, context: Context, wanted: SearchingSettings, there: Mapping[str, Path], make: Callable[[Candidate, Path], object], pool: VerifierPool,
        reads: tuple[Path, ...] = (),
    ) -> None:  # fmt: skip
        self.context, self.wanted, self.there, self.parts = context, wanted, there, validation(context, wanted)
        self.scores: dict[tuple[str, Part], Scores] = {}
        self._make, self._pool, self._folder = make, pool, context.resume / "search"
        models = (*context.settings.models_read, *wanted.reward_models_read)
        inputs = {str(path): tree_sha256(context.root / path) for path in (*map(paths.model, models), *reads)}
        code = {module: code_sha256(module) for module in ("pipelines.merging", "pipelines.evaluation.benchmarks")}
        asking = wanted.model_dump_json(include={"samples", "generation", "judge"})
        self._identity = {**inputs, **code, "asking": asking, "seed": str(context.seed)}
        require_sandbox_for(problem for problems in self.parts.values() for problem in problems)

    def score(self, candidate: Candidate, part: Part) -> Scores:
        """Share of correct responses per problem."""
        key = (candidate.name, part)
        if key not in self.scores:
            problems = self.parts[part]
            about = {"candidate": repr(candidate), "dtype": self.context.settings.dtype, **{str(i): p.problem_id for i, p in enumerate(problems)}}
            answers = self._folder / combine(self._identity | about)
            generator = functools.cache(functools.partial(self._generator, candidate))
            show = functools.partial(self._show, candidate)
            table = collect(generator, problems, self.wanted.samples, self.context.seed, self._pool, answers, show)
            answers_of, _ = rows_by_problem(table)
            self.scores[key] = np.array([_share([row.outcome for row in answers_of[problem.problem_id]]) for problem in problems])
            self.context.journal.say(f"{candidate.name}: {part} {self.scores[key].mean():.3f}")
        return self.scores[key]

    def _generator(self, candidate: Candidate) -> generation.Generator:
        folder = self._folder / "candidate"
        if candidate.method is None:
            folder = self.context.root / self.there[candidate.models[0]]
        else:
            self._make(candidate, folder)
        return generation.create(self.wanted.generation, folder, self.context.device)

    def _show(self, candidate: Candidate, done: int, total: int) -> None:
        self.context.journal.show(done, total, f"responses of {candidate.name}")


def _share(outcomes: list[str]) -> float:
    judged = [outcome for outcome in outcomes if outcome != Outcome.INFRASTRUCTURE.value]
    if not judged:
        raise InfrastructureError("no response to a validation problem could be judged")
    return avg_at_k(len(judged), judged.count(Outcome.CORRECT.value), 1)


def record_of(choice: Choice, scorer: Scorer) -> dict[str, Any]:
    """What was tried and what came of it, for search.json and MLflow."""
    wanted, seed = scorer.wanted, (scorer.context.seed, "merging.search", "bootstrap")
    trials = []
    for trial in choice.trials:
        values = scorer.scores.get((trial.candidate.name, "choose"))
        interval = {} if values is None else asdict(mean_interval(values, wanted.bootstrap, seeding.generator(*seed, trial.candidate.name)))
        trials.append({"name": trial.candidate.name, "method": trial.candidate.method, "settings": dict(trial.candidate.settings),
                       "models": list(trial.candidate.models or scorer.there), "mean": trial.mean, **interval})  # fmt: skip
    zeros = np.zeros_like(choice.difference)
    difference = asdict(paired_difference(choice.difference, zeros, wanted.bootstrap, seeding.generator(*seed, "difference")))
    counts = {part: len(problems) for part, problems in scorer.parts.items()}
    return {"trials": trials, "winner": choice.winner.name, "expert": choice.expert.name, "difference": difference, "problems": counts}


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Of the stage: what the winner won by on the half that chose nothing, and how many were tried."""
    return {f"search_{key}": record["difference"][key] for key in ("mean", "low", "high")} | {"search_trials": float(len(record["trials"]))}
