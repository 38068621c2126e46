"""Kind rl: reinforcement learning with verifiable rewards, from the model that `init` names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.config.rl import RlStage
from pipelines.errors import UserError
from pipelines.models import ranks
from pipelines.models.adapters import add_adapters
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.loading import load_policy, write_vocabulary
from pipelines.records import Problem
from pipelines.rl.journal import notices
from pipelines.rl.recipe import Recipe, recipe
from pipelines.rl.roles import roles_of
from pipelines.rl.train import train
from pipelines.stages import Context, rows
from pipelines.stages.identity import identity
from pipelines.stages.trained import along, hand_over, save
from pipelines.store import replacing_folder
from pipelines.verifiers import require_sandbox_for


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME> and data/rollouts/<NAME>."""
    settings: RlStage = context.settings
    chosen = recipe(settings.recipe, **settings.overrides)
    problems = rows.read(context, settings)
    require_sandbox_for(problems)
    with ranks.joined(context.device) as device:
        return _run(context, chosen, problems, device)


def _run(context: Context, chosen: Recipe, problems: list[Problem], device: str) -> dict[str, float]:
    settings: RlStage = context.settings
    init = context.root / paths.model(settings.init)
    policy, tokenizer = load_policy(init, device)
    key = f"rl@{context.stage}"  # of all its randomness
    if settings.lora:
        add_adapters(policy, settings.lora, context.seed, key)
    reference = context.root / paths.model(settings.reference or settings.init)
    sources_of = {"init": init, "reference": reference}
    frozen = {
        name: _beside(sources_of[role.source], tokenizer, device, f"{context.stage}: the policy '{name}' of recipe '{chosen.name}'")
        for name, role in roles_of(chosen).items()
        if role.source != "copy"
    }
    checkpoints = Checkpoints(
        context.resume,
        identity(context, __name__, problems=map(paths.rows, settings.rows_read), models=map(paths.model, settings.models_read)),
        context.on_change,
        writes=context.first,
        stage=context.stage,
    )
    if context.first and (note := checkpoints.prepare()):
        context.journal.say(note)
    ranks.wait()
    rollouts = context.resume / "rollouts"
    kept = along(context, init)
    trained = train(
        policy, tokenizer, problems, chosen, settings,
        stage=key, seed=context.seed, journal=context.journal, checkpoints=checkpoints, rollout_folder=rollouts, frozen=frozen, kept=kept,
    )  # fmt: skip
    save(context, init, policy, tokenizer, trained.best, settings.validation.keep if settings.validation else "last")
    if not context.first:
        return trained.summary
    with replacing_folder(context.root / paths.ROLLOUTS / context.stage) as folder:
        for path in sorted(rollouts.glob("step-*.parquet")):
            shutil.copyfile(path, folder / path.name)  # an interrupted run continues from the others
        write_vocabulary(folder, tokenizer)
    counts = {"problems": float(len(problems)), **hand_over(context, kept)}
    context.accepted.extend(checkpoints.accepted())
    for text in notices(context.journal.rows()):
        context.notice(text)
    return trained.summary | counts


def _beside(source: Path, tokenizer: Any, device: str, what: str) -> Any:
    """A policy that does not train.

    Raises:
        UserError: it reads other ids than the one that trains.
    """
    policy, theirs = load_policy(source, device)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{what} is {source.name}, whose tokenizer is another than that of the policy: the same ids would mean other text")
    return policy.eval().requires_grad_(False)
