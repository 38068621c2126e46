"""Kind rl: reinforcement learning with verifiable rewards, from the model that `init` names."""

from __future__ import annotations

from pipelines import paths
from pipelines.config.rl import RlStage
from pipelines.errors import UserError
from pipelines.models import ranks
from pipelines.rl.journal import notices
from pipelines.rl.recipe import recipe
from pipelines.rl.roles import untaught
from pipelines.stages import Context, rows
from pipelines.stages.learning import learn
from pipelines.verifiers import require_sandbox_for


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME> and data/rollouts/<NAME>.

    Raises:
        UserError: the recipe has no part for a policy that answers without teachers.
    """
    settings: RlStage = context.settings
    chosen = recipe(settings.recipe, **settings.overrides)
    if sentence := untaught(chosen, ""):
        raise UserError(f"{context.stage}: recipe {sentence}")
    problems = rows.read(context, settings)
    require_sandbox_for(problems)
    with ranks.joined(context.device) as device:
        summary = learn(context, __name__, chosen, problems, device, reads=map(paths.rows, settings.rows_read))
    for text in notices(context.journal.rows()) if context.first else ():
        context.notice(text)
    return summary | {"problems": float(len(problems))}
