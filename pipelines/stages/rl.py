"""Kind rl: reinforcement learning with verifiable rewards, from the model that `init` names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import paths
from pipelines.config.rl import RlStage
from pipelines.errors import UserError
from pipelines.generation import TorchGenerator
from pipelines.models import ranks
from pipelines.models.kept import steps
from pipelines.models.loading import load_policy
from pipelines.rl.journal import notices
from pipelines.rl.later import Later
from pipelines.rl.recipe import recipe
from pipelines.rl.roles import roles_of, untaught
from pipelines.stages import Context, rows
from pipelines.stages.learning import beside_policy, learn
from pipelines.store import to_problems
from pipelines.verifiers import require_sandbox_for


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME> and data/rollouts/<NAME>.

    Raises:
        UserError: the recipe has no part for a policy that answers without teachers, or for what teachers wrote, or lacks that.
    """
    settings: RlStage = context.settings
    chosen = recipe(settings.recipe, **settings.overrides)
    if sentence := untaught(chosen, ""):
        raise UserError(f"{context.stage}: recipe {sentence}")
    taught = "solutions" in roles_of(chosen)
    if taught != bool(settings.demonstrations):
        why = "learns from what teachers wrote; name their rows under `demonstrations`" if taught else "reads no `demonstrations`; leave them out"
        raise UserError(f"{context.stage}: recipe '{chosen.name}' {why}")
    if ("later" in roles_of(chosen)) != bool(settings.later):
        why = "reads no `later`; leave it out" if settings.later else "is guided by later checkpoints; name the stage that kept them under `later`"
        raise UserError(f"{context.stage}: recipe '{chosen.name}' {why}")
    found = rows.select(context, settings)
    written = {reference: rows.table_of(context.root, reference) for reference in settings.demonstrations}
    rows.see(context, {reference: rows.ids(table) for reference, table in (found | written).items()})
    problems = [problem for table in found.values() for problem in to_problems(table)]
    beside: dict[str, Any] = {"solutions": _solutions(written.values())} if taught else {}
    require_sandbox_for(problems)
    with ranks.joined(context.device) as device:
        if settings.later:
            beside["later"] = _later(context, settings.later, device)
        reads = [*map(paths.rows, settings.rows_read), *([paths.KEPT / settings.later] if settings.later else [])]
        summary = learn(context, __name__, chosen, problems, device, beside=beside, reads=reads)
    for text in notices(context.journal.rows()) if context.first else ():
        context.notice(text)
    return summary | {"problems": float(len(problems))}


def _solutions(written: Iterable[pa.Table]) -> dict[str, list[str]]:
    """By id of a problem the solutions of its teachers, each of whom has a table."""
    solutions: dict[str, list[str]] = defaultdict(list)
    for problem in (problem for table in written for problem in to_problems(table)):
        if problem.solution is not None:
            solutions[problem.problem_id].append(problem.solution)
    return dict(solutions)


def _later(context: Context, name: str, device: str) -> Later:
    """What the stage of that name kept on its way."""
    settings: RlStage = context.settings
    _, tokenizer = load_policy(context.root / paths.model(settings.init))

    def speaking(folder: Path) -> TorchGenerator:
        policy = beside_policy(folder, tokenizer, device, f"{context.stage}: what {name} had become")
        return TorchGenerator(policy, tokenizer, settings.generation)

    return Later(steps(context.root / paths.KEPT / name), speaking)
