"""THE LOOP: answer problems -> recompose -> score -> advantage -> update -> log -> checkpoint.

The loop knows no algorithm: slots of the recipe decide what is answered and how (from `tasks` to `recompose`), and what a reward, an advantage and a
loss are. Nor does it know where answers come from: the policy makes them as it trains, or they are stored (schedule/). run.py has what each verb
does. Everything random is keyed by (seed, stage, step), so a checkpoint of weights, optimiser and step resumes exactly. Several processes run the
same loop, each on its share of the groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.learning import LearningStage
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.kept import Kept
from pipelines.progress import Journal
from pipelines.records import Problem, Trajectory
from pipelines.rl.account import training
from pipelines.rl.clock import Clock
from pipelines.rl.collate import fresh, judged
from pipelines.rl.journal import report, summary
from pipelines.rl.recipe import Recipe
from pipelines.rl.rewards import NOBODY, Judges
from pipelines.rl.run import Run, begun


@dataclass
class Trained:
    """What a run leaves beside the policy's last weights: its summary, and the best weights where it was validated."""

    summary: dict[str, float]
    best: dict[str, Any] | None


def train(
    policy: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    recipe: Recipe,
    settings: LearningStage,
    *,
    stage: str,
    seed: int,
    journal: Journal,
    checkpoints: Checkpoints,
    rollout_folder: Path,
    frozen: Mapping[str, Any] | None = None,
    kept: Kept | None = None,
    stored: Sequence[Sequence[Trajectory]] | None = None,
    judges: Judges = NOBODY,
) -> Trained:
    """Train `policy` in place, from its newest checkpoint if there is one.

    `frozen` holds the policies of `roles_of` that do not follow the trained one. stored: groups of responses to train on; None has the policy answer.
    judges: models that say what answers are worth.
    """
    with begun(
        policy, tokenizer, problems, recipe, settings, stage=stage, seed=seed, journal=journal, checkpoints=checkpoints,
        rollout_folder=rollout_folder, frozen=frozen or {}, kept=kept, stored=stored,
        judges=judges,
    ) as run:  # fmt: skip
        step = run.resume()
        while step < run.steps and not run.over:
            step += 1
            clock = Clock()
            answered = run.plan.take(step, clock)
            trajectories = run.recompose(step, answered, clock)
            run.history.add(step, trajectories)
            if step < run.steps:
                run.plan.ahead(step + 1)
            trajectories, scored, figures = judged(trajectories), None, run.plan.figures()
            if training(trajectories):
                trajectories, ages = fresh(trajectories, step, settings.answered.bound, settings.answered.stale)
                trajectories, scored = run.score(step, trajectories)
                clock.lap("score")
                figures = ages | run.update(step, scored) | figures
                clock.lap("update")
            if run.validation:
                figures |= run.validation.measure(step, run.steps, run.plan, policy)
                clock.lap("validate")
            figures |= run.reset(step, figures)
            run.keep(step, trajectories)
            clock.lap("other")
            report(journal, step, run.steps, trajectories, scored.batch if scored else None, figures, clock)
            run.checkpoint(step)
    return _trained(run, step)


def _trained(run: Run, step: int) -> Trained:
    if run.actor.value_head is not None:
        del run.actor.policy.value_head
    if run.validation is None:
        return Trained(summary(run.journal), None)
    if step < run.steps:
        run.journal.say(f"stopped after step {step}: {run.validation.settings.patience} measurements without a new best")
    best = run.validation.best
    return Trained(summary(run.journal) | {"best_step": float(best.step), "best_validation": best.figure}, best.weights())
