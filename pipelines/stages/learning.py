"""What the kinds rl, preference and distil share: a recipe trains the model that `init` names, by the loop of pipelines/rl."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.config.learning import LearningStage
from pipelines.config.rl import SamplingStage
from pipelines.config.stage import BOUND, Served
from pipelines.errors import UserError
from pipelines.models.adapters import add_adapters
from pipelines.models.loading import load_policy, write_vocabulary
from pipelines.models.reward_model import RewardModel
from pipelines.records import Problem, Trajectory
from pipelines.rl.recipe import Recipe
from pipelines.rl.rewards import Judges
from pipelines.rl.roles import roles_of
from pipelines.rl.train import train
from pipelines.stages import Context
from pipelines.stages.judging import judge_of, reward_model
from pipelines.stages.trained import along, hand_over, opened, save
from pipelines.store import replacing_folder


def learn(
    context: Context,
    module: str,
    chosen: Recipe,
    problems: Sequence[Problem],
    device: str,
    *,
    stored: Sequence[Sequence[Trajectory]] | None = None,
    beside: Mapping[str, Any] | None = None,
    reads: Iterable[Path] = (),
) -> dict[str, float]:
    """Train, and write data/models/<NAME> and, of a stage that samples, data/rollouts/<NAME>. Of several processes all must call.

    module: the stage's own, by its dotted name. stored: groups of responses to train on; None has the policy answer. beside: policies of roles
    that the stage itself provides. reads: what else than models it reads, relative to the root. Returns the summary.
    """
    settings: LearningStage = context.settings
    init = context.root / paths.model(settings.init)
    policy, tokenizer = load_policy(init, device)
    key = f"{settings.kind}@{context.stage}"  # type: ignore[attr-defined]  # of all its randomness
    if settings.lora:
        add_adapters(policy, settings.lora, context.seed, key)
    sources_of = {"init": init, "reference": context.root / paths.model(settings.reference or settings.init)}
    frozen = dict(beside or {})
    for name, role in roles_of(chosen).items():
        if role.source in sources_of:
            what = f"{context.stage}: the policy '{name}' of recipe '{chosen.name}'"
            frozen[name] = beside_policy(sources_of[role.source], tokenizer, device, what)
    judges = Judges(_reward_models(context, chosen, device), judge_of(context, getattr(settings, "judge", None), device))
    models = (*settings.models_read, *settings.reward_models_read)
    checkpoints = opened(context, module, problems=reads, models=map(paths.model, models))
    rollouts, kept = context.resume / "rollouts", along(context, init)
    trained = train(
        policy, tokenizer, problems, chosen, settings, stage=key, seed=context.seed, journal=context.journal, checkpoints=checkpoints,
        rollout_folder=rollouts, frozen=frozen, kept=kept, stored=stored, judges=judges,
    )  # fmt: skip
    validation = settings.validation if isinstance(settings, SamplingStage) else None
    save(context, init, policy, tokenizer, trained.best, validation.keep if validation else "last")
    if not context.first:
        return trained.summary
    if settings.leaves_rollouts:
        with replacing_folder(context.root / paths.ROLLOUTS / context.stage) as folder:
            for path in sorted(rollouts.glob("step-*.parquet")):
                shutil.copyfile(path, folder / path.name)  # an interrupted run continues from the others
            write_vocabulary(folder, tokenizer)
    context.accepted.extend(checkpoints.accepted())
    return trained.summary | hand_over(context, kept)


def _reward_models(context: Context, chosen: Recipe, device: str) -> dict[str, RewardModel]:
    """Those that parts of the reward name, by stage.

    Raises:
        UserError: one is not good enough.
    """
    found: dict[str, RewardModel] = {}
    for part in chosen.slots["parts"]:
        if part["name"] == "reward_model":
            given = Served(stage=part["stage"], bound=part.get("bound", BOUND))
            found[given.stage] = found.get(given.stage) or reward_model(context, given, device)
            found[given.stage].require(given.bound)
    return found


def beside_policy(source: Path, tokenizer: Any, device: str, what: str) -> Any:
    """A policy that does not train.

    Raises:
        UserError: it reads other ids than the one that trains.
    """
    policy, theirs = load_policy(source, device)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{what} is {source.name}, whose tokenizer is another than that of the policy: the same ids would mean other text")
    return policy.eval().requires_grad_(False)
