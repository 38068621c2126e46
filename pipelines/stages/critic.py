"""A critic that learns before the policy does, from the responses that a stage of kind preference reads, for recipes with `by: critic`.

V(s) is what the reference's answers are expected to earn from a state s on. It is the reference with a linear head, which starts at 0:

    a_lol             s is the prompt; V = head, the mean of (V - R)^2; the reference stays (arXiv 2305.14718)
    direct_advantage  s is the response up to a step; V = sigmoid(head), cross-entropy to being right; all weights learn (arXiv 2412.18279)

R is what the response has earned or, with `critic.completions`, the mean of as many answers of the reference that go on from s. They are kept batch
by batch, and the training is the loop of kind sft, with checkpoints of its own: a killed stage goes on with both.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines import paths
from pipelines.config.preference import PreferenceStage
from pipelines.config.training import TrainingSettings
from pipelines.errors import InfrastructureError, UserError
from pipelines.generation import Request, create
from pipelines.lineage.digests import combine
from pipelines.models import ranks
from pipelines.models.adapters import VALUE_HEAD
from pipelines.models.scoring import pad, token_scores
from pipelines.models.sharding import weights
from pipelines.models.value_head import add_value_head
from pipelines.records import Outcome, Problem, Trajectory, Verdict
from pipelines.rl.inputs.probes import step_starts
from pipelines.rl.inputs.scores import value
from pipelines.rl.inputs.step import Actor
from pipelines.rl.recipe import Recipe
from pipelines.rl.tensors import Asks
from pipelines.sft.objectives import Objective
from pipelines.sft.train import train
from pipelines.stages import Context
from pipelines.stages.learning import beside_policy
from pipelines.stages.responses import Responses
from pipelines.stages.trained import opened
from pipelines.store import read_json, write_json
from pipelines.verifiers import VerifierPool, require_sandbox_for

PART = "critic"
"""Its folder below the stage's checkpoints, and what its journal begins with."""
Prefix = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class States:
    """The states of one response. ids: up to the token behind the last of them. places: of the tokens that they stand before. targets: what V learns
    there. each: weight of one."""

    ids: list[int]
    places: tuple[int, ...]
    targets: tuple[float, ...]
    each: float = 1.0
    of: str = ""

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> int:
        return len(self.places)

    @property
    def weight(self) -> float:
        return self.each * len(self.places)


IDLE = States([0, 0], (1,), (0.0,), each=0.0)


def trained(
    context: Context, chosen: Recipe, found: Responses, groups: Sequence[Sequence[Trajectory]], tokenizer: Any, device: str
) -> tuple[Actor, dict[str, float]]:
    """The critic that the recipe reads, frozen, and figures of its training. Of several processes all must call.

    Raises:
        UserError: the recipe reads both of prompts and of steps, or completions lack problems.
        InfrastructureError: no completion could be judged.
    """
    settings: PreferenceStage = context.settings
    if len(chosen.of_critic) > 1:
        raise UserError(f"{context.stage}: one critic cannot say both {' and '.join(chosen.of_critic)}")
    by_step = chosen.of_critic == ("step_value_BK",)
    reference = context.root / paths.model(settings.reference or settings.init)
    begun = functools.partial(_begun, reference, tokenizer, device, f"{context.stage}: the reference")
    critic = begun()
    if (settings.critic.weights or ("all" if by_step else "head")) == "head":
        for name, weight in critic.named_parameters():
            weight.requires_grad_(name.startswith(VALUE_HEAD))
    read = {"problems": map(paths.rows, settings.rows_read), "models": map(paths.model, settings.models_read)}
    checkpoints = opened(context, __name__, PART, **read)
    cut = functools.partial(step_starts, tokenizer, delimiters=chosen.setting("step_value_BK", "delimiters")) if by_step else lambda _: [0]
    cuts = [(rollout, cut(rollout.response_ids)) for group in groups for rollout in group]
    told = None
    if settings.critic.completions:
        if Asks.PROBLEM in found.lacking:
            raise UserError(f"{context.stage}: critic.completions are judged, which needs {Asks.PROBLEM.value}: name them in data")
        folder = checkpoints.folder / combine({"completions": json.dumps(checkpoints.identity, sort_keys=True)})
        told = _completed(context, reference, tokenizer, _prefixes(cuts, found.problems), by_step, folder)
    examples = [states for rollout, starts in cuts if (states := states_of(rollout, starts, by_step, told))]
    if not examples:
        raise InfrastructureError(f"{context.stage}: not one completion of the critic's states could be judged")
    summary, _ = train(
        critic, examples, _training(settings), seed=context.seed, purpose=f"{context.stage} {PART}", journal=context.journal.part(PART),
        checkpoints=checkpoints, objective=Objective(functools.partial(loss, by_step=by_step), IDLE, "states"),
    )  # fmt: skip
    if context.first:
        context.accepted.extend(checkpoints.accepted())
    state = weights(critic)
    critic = begun()
    critic.load_state_dict(state)
    figures = {"critic_loss": summary["final_loss"], "critic_states": float(sum(each.scored for each in examples))}
    return Actor(critic.requires_grad_(False), tokenizer, value_head=critic.value_head), figures


def _begun(reference: Path, tokenizer: Any, device: str, what: str) -> Any:
    policy = beside_policy(reference, tokenizer, device, what).requires_grad_(True)
    add_value_head(policy)
    return policy


def _training(settings: PreferenceStage) -> TrainingSettings:
    of_stage = ("micro_batch", "precision", "gradient_checkpointing", "checkpoint_every", "checkpoint_minutes")
    given = {name: getattr(settings, name) for name in of_stage}
    return TrainingSettings(**given, epochs=settings.critic.epochs, batch_size=settings.critic.batch_size, optimiser=settings.critic.optimiser)


def states_of(rollout: Trajectory, starts: Sequence[int], by_step: bool, told: Mapping[Prefix, float | None] | None) -> States | None:
    """A response's states, and what V learns there: what it has earned, or what was `told` of each; None where nothing was. starts: places in the
    response. by_step: V is the probability of a correct end."""
    prompt, response = rollout.prompt_ids, rollout.response_ids
    earned = float(rollout.outcome == Outcome.CORRECT) if by_step else rollout.reward
    wanted = {len(prompt) + start: earned if told is None else told[(*prompt, *response[:start])] for start in starts}
    known = {place: target for place, target in wanted.items() if target is not None}
    return States([*prompt, *response][: max(known) + 1], tuple(known), tuple(known.values())) if known else None


def loss(model: Any, examples: Sequence[States], by_step: bool) -> Tensor:
    """The sum over states: cross-entropy to the target, or the squared difference to it."""
    ids_BT = pad([example.ids for example in examples], device=model.device)
    target_BT, weight_BT = torch.zeros((2, *ids_BT.shape), device=model.device)
    score_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, example in enumerate(examples):
        places = list(example.places)
        target_BT[row, places] = torch.tensor(example.targets, device=model.device)
        weight_BT[row, places] = example.each
        score_BT[row, places] = True
    head = value(Actor(model, None, value_head=model.value_head))
    value_BT = token_scores(model, ids_BT, score_BT, {}, on_hidden={"value": head})["value"]
    loss_BT = F.softplus(value_BT) - target_BT * value_BT if by_step else (value_BT - target_BT) ** 2
    return (loss_BT * weight_BT).sum()


def _prefixes(cuts: Iterable[tuple[Trajectory, Sequence[int]]], problems: Mapping[str, Problem]) -> dict[Prefix, tuple[Problem, int]]:
    """Every state once: its ids -> the problem, and how many of them are the prompt's."""
    return {
        (*rollout.prompt_ids, *rollout.response_ids[:start]): (problems[rollout.problem_id], len(rollout.prompt_ids))
        for rollout, starts in cuts
        for start in starts
    }


def _completed(
    context: Context, reference: Path, tokenizer: Any, states: Mapping[Prefix, tuple[Problem, int]], by_step: bool, folder: Path
) -> dict[Prefix, float | None]:
    """What the reference's answers from each state earn on average, None where it has no room or no verdict. The first process asks for all.

    folder: where it is kept, a file for each batch.
    """
    require_sandbox_for(problem for problem, _ in states.values())
    table: list[dict[str, float | None]] = []
    if ranks.rank() == 0:
        known = {key: reward for file in sorted(folder.glob("*.json")) for key, reward in read_json(file).items()}
        missing = {key: prefix for prefix in states if (key := _key(prefix)) not in known}
        for rewards in _asked(context, reference, tokenizer, missing, states, by_step):
            write_json(folder / f"{len(known):08d}.json", rewards)
            known |= rewards
            context.journal.show(len(known), len(states), f"states of the {PART}")
        table = [known]
    (known,) = ranks.collect(table)
    return {prefix: known[_key(prefix)] for prefix in states}


def _asked(
    context: Context, reference: Path, tokenizer: Any, missing: Mapping[str, Prefix], states: Mapping[Prefix, tuple[Problem, int]], by_step: bool
) -> Iterator[dict[str, float | None]]:
    """Batch by batch, what the answers from states that nobody has asked for yet earn on average."""
    how, keys = context.settings.critic, list(missing)
    if not keys:
        return
    size = max(1, how.generation.batch_size // how.completions)
    with VerifierPool() as pool, closing(create(how.generation, reference, context.device)) as engine:
        for begin in range(0, len(keys), size):
            batch = keys[begin : begin + size]
            rooms = {key: int(min(how.generation.max_new_tokens, engine.context - len(missing[key]))) for key in batch}
            asked = [key for key in batch if rooms[key] > 0]
            seed = (context.seed, context.stage, PART)
            groups = engine.generate([Request(missing[key], how.completions, (*seed, key), limit=rooms[key]) for key in asked])
            pairs = []
            for key, group in zip(asked, groups, strict=True):
                problem, prompt = states[missing[key]]
                said = tokenizer.decode(missing[key][prompt:], skip_special_tokens=True)
                pairs += [(problem, said + sample.text) for sample in group]
            verdicts = iter(pool.verify_batch(pairs))
            yield dict.fromkeys(batch) | {key: _mean([next(verdicts) for _ in range(how.completions)], by_step) for key in asked}


def _mean(verdicts: Sequence[Verdict], by_step: bool) -> float | None:
    judged = [verdict for verdict in verdicts if verdict.outcome != Outcome.INFRASTRUCTURE]
    return sum(float(verdict.correct) if by_step else verdict.score for verdict in judged) / len(judged) if judged else None


def _key(prefix: Prefix) -> str:
    return hashlib.sha256(str(prefix).encode()).hexdigest()[:32]
