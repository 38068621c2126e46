"""Kind merge: several models become one, by the method that params name or by the one that validates best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.config.checking import check
from pipelines.config.evaluation import MergeStage, SearchSettings
from pipelines.merging import MergeConfig, merge
from pipelines.merging.search import Candidate, grid, search
from pipelines.stages import Context
from pipelines.stages.judging import judge_of
from pipelines.stages.searching import Scorer, figures, record_of
from pipelines.store import write_json
from pipelines.verifiers import VerifierPool


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
        metrics |= figures(record)
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

    def make(candidate: Candidate, folder: Path) -> object:
        return merge(_config(context, candidate, candidate.models or names), folder, owned=True, empty=True)

    with VerifierPool(judge=judge_of(context, wanted.judge, context.device)) as pool:
        scorer = Scorer(context, wanted, {name: paths.model(name) for name in names}, make, pool)
        choice = search(list({candidate.name: candidate for candidate in candidates}.values()), names, scorer.score, wanted.budget, wanted.greedy)
    return choice.winner, record_of(choice, scorer)
