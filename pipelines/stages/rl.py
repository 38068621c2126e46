"""Kind rl: reinforcement learning with verifiable rewards, from the model that `init` names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa

from pipelines import paths
from pipelines.config.rl import RlStage
from pipelines.errors import UserError
from pipelines.models import ranks
from pipelines.rl.journal import notices
from pipelines.rl.recipe import recipe
from pipelines.rl.roles import roles_of, untaught
from pipelines.stages import Context, rows
from pipelines.stages.learning import learn
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
    found = rows.select(context, settings)
    written = {reference: rows.table_of(context.root, reference) for reference in settings.demonstrations}
    rows.see(context, {reference: rows.ids(table) for reference, table in (found | written).items()})
    problems = [problem for table in found.values() for problem in to_problems(table)]
    beside = {"solutions": _solutions(written.values())} if taught else {}
    require_sandbox_for(problems)
    with ranks.joined(context.device) as device:
        summary = learn(context, __name__, chosen, problems, device, beside=beside, reads=map(paths.rows, settings.rows_read))
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
