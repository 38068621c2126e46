"""Inputs that ask the policy about its own half-finished responses (SPAE, arXiv 2601.03823), and how unlike each other right ones are.

The working is cut into steps at a delimiter. After each step the answer is probed: how likely the right one is when it is
forced (Acc), and how sure the policy is of the answers it samples (Conf). Potential = 1.5 Acc Conf + 0.5 Acc - Conf.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pipelines import prompting
from pipelines.config.learning import LearningStage
from pipelines.config.rl import SamplingStage
from pipelines.generation import Request, TorchGenerator
from pipelines.models.scoring import chosen, entropy, pad
from pipelines.models.sharding import gathered
from pipelines.records import Outcome, Problem
from pipelines.rl import account
from pipelines.rl.inputs.scores import of_critic
from pipelines.rl.inputs.step import Actor, Step, scored

Form = Literal["paper", "code"]
DELIMITERS = (".\n\n",)


def step_starts(tokenizer: object, response_ids: Sequence[int], delimiters: Sequence[str] = DELIMITERS, *, thought: bool = True) -> list[int]:
    """Where each step of the working begins: 0, and after every token that completes a delimiter, before the end of thought or (`thought` false)
    anywhere."""
    starts, text = [0], ""
    for place, token in enumerate(response_ids):
        text += tokenizer.decode([token])  # type: ignore[attr-defined]
        if thought and prompting.END_THINK in text:
            break
        if text.endswith(tuple(delimiters)) and place + 1 < len(response_ids):
            starts.append(place + 1)
    return starts


def steps(step: Step, *, delimiters: Sequence[str] = DELIMITERS) -> Tensor:
    """Number of the step of working that each token belongs to."""
    rows = []
    for r in step.rollouts:
        starts = step_starts(step.actor.tokenizer, r.response_ids, delimiters)
        rows.append([sum(start <= place for start in starts) - 1 for place in range(len(r.response_ids))])
    return step.tokens(rows, 0)


def potential(accuracy: Tensor, confidence: Tensor) -> Tensor:
    """1.5 Acc Conf + 0.5 Acc - Conf, in [-1, 1]."""
    return 1.5 * accuracy * confidence + 0.5 * accuracy - confidence


def potentials(step: Step, *, samples: int = 5, tokens: int = 10, form: Form = "paper", delimiters: Sequence[str] = DELIMITERS) -> Tensor:
    """Potential after each step (B, K), nan past a response's last.

    form `paper`: Acc is the mean probability of the right answer's tokens, Conf of exp(-mean entropy) of the sampled ones; `code`: of
    the whole answer's probability and of exp(-sum of entropies), each divided by the number of tokens.
    """
    ends = [[*step_starts(step.actor.tokenizer, r.response_ids, delimiters)[1:], len(r.response_ids)] for r in step.rollouts]
    prefixes = [(row, end) for row, places in enumerate(ends) for end in places]
    accuracy = _forced(step, prefixes, form)
    confidence = _sampled_confidence(step, prefixes, samples, tokens, form)
    return _by_row(step, prefixes, potential(accuracy, confidence))


def step_values(step: Step, *, delimiters: Sequence[str] = DELIMITERS, by: Literal["policy", "critic"] = "policy") -> Tensor:
    """Probability of a correct end before each step (B, K), nan past a response's last. by `policy`: of the right answer when it is forced there;
    `critic`: as a critic that was trained beforehand says."""
    tokenizer = step.actor.tokenizer
    prefixes = [(row, start) for row, r in enumerate(step.rollouts) for start in step_starts(tokenizer, r.response_ids, delimiters)]
    if by == "policy":
        return _by_row(step, prefixes, _forced(step, prefixes, "paper"))
    rows, starts = torch.tensor(prefixes, device=step.ids_BT.device).T
    return _by_row(step, prefixes, torch.sigmoid(of_critic(step)[rows, step.score_BT.int().argmax(1)[rows] + starts]))


def _by_row(step: Step, prefixes: Sequence[tuple[int, int]], values: Tensor) -> Tensor:
    rows: list[list[float]] = [[] for _ in step.rollouts]
    for (row, _), value in zip(prefixes, values.tolist(), strict=True):
        rows[row].append(value)
    width = max(map(len, rows))
    return step.tensor([[*row, *[float("nan")] * (width - len(row))] for row in rows])


Foreseen = tuple[Problem, Sequence[int], Sequence[int]]
"""A problem, the ids of a prompt, and those of a response or its beginning."""


def foreseen(actor: Actor, settings: LearningStage, responses: Sequence[Foreseen]) -> list[float]:
    """Mean probability of the right answer's tokens where it is forced after the working of each response. Of several processes all must call."""
    with gathered(actor.policy):
        return _after(actor, settings, responses, "paper").tolist() if responses else []


def _stub(actor: Actor, settings: LearningStage, asked: Foreseen) -> list[int]:
    """The prompt, the working of the response as far as it goes, and the opening of an answer."""
    problem, prompt, response = asked
    text = actor.tokenizer.decode(response)
    opening = prompting.opening(problem, settings.answered.prompt)
    cut = text.find(prompting.END_THINK)
    beginning = response if cut < 0 else _tokenise(actor, text[:cut])
    return [*prompt, *beginning, *_tokenise(actor, opening)]


def _tokenise(actor: Actor, text: str) -> list[int]:
    return actor.tokenizer(text, add_special_tokens=False)["input_ids"]


def _cut(step: Step, row: int, end: int) -> Foreseen:
    """A response of the step up to `end`."""
    return step.problems[row], step.rollouts[row].prompt_ids, step.rollouts[row].response_ids[:end]


def _forced(step: Step, prefixes: Sequence[tuple[int, int]], form: Form) -> Tensor:
    """Probability of the gold answer after each prefix."""
    return _after(step.actor, step.settings, [_cut(step, row, end) for row, end in prefixes], form)


@torch.no_grad()
def _after(actor: Actor, settings: LearningStage, responses: Sequence[Foreseen], form: Form) -> Tensor:
    values = []
    for start in range(0, len(responses), settings.micro_batch):
        part = responses[start : start + settings.micro_batch]
        stubs = [_stub(actor, settings, asked) for asked in part]
        golds = [_tokenise(actor, problem.answer) for problem, _, _ in part]
        ids = pad([[*s, *g] for s, g in zip(stubs, golds, strict=True)], device=actor.policy.device)
        score = torch.zeros_like(ids, dtype=torch.bool)
        for row, (s, g) in enumerate(zip(stubs, golds, strict=True)):
            score[row, len(s) : len(s) + len(g)] = True
        logp = scored(settings, actor.policy, ids, score, {"logp": chosen})["logp"]
        probability = (logp.exp() * score).sum(-1) if form == "paper" else (logp * score).sum(-1).exp()
        values.append(probability / score.sum(-1).clamp(min=1))
    return torch.cat(values)


@torch.no_grad()
def _sampled_confidence(step: Step, prefixes: Sequence[tuple[int, int]], samples: int, tokens: int, form: Form) -> Tensor:
    """Mean over sampled answers of how sure the policy is of their tokens."""
    assert isinstance(step.settings, SamplingStage)  # stored answers refuse recipes that sample
    settings = step.settings.generation.model_copy(update={"max_new_tokens": tokens})
    generator = TorchGenerator(step.actor.policy, step.actor.tokenizer, settings)
    stubs = [tuple(_stub(step.actor, step.settings, _cut(step, row, end))) for row, end in prefixes]
    keys = [(*step.seed, "probe", step.number, *account.place(step.rollouts[row]), end) for row, end in prefixes]
    requests = [Request(stub, samples, key) for stub, key in zip(stubs, keys, strict=True)]
    answers = generator.generate(requests)
    rows = [(stub, sample.token_ids) for stub, group in zip(stubs, answers, strict=True) for sample in group]
    values = []
    for start in range(0, len(rows), step.settings.micro_batch):
        part = rows[start : start + step.settings.micro_batch]
        ids = pad([[*stub, *answer] for stub, answer in part], device=step.ids_BT.device)
        score = torch.zeros_like(ids, dtype=torch.bool)
        for row, (stub, answer) in enumerate(part):
            score[row, len(stub) : len(stub) + len(answer)] = True
        spread = scored(step.settings, step.actor.policy, ids, score, {"entropy": entropy})["entropy"]
        total, count = (spread * score).sum(-1), score.sum(-1)
        values.append((-total / count).exp() if form == "paper" else (-total).exp() / count)
    return torch.cat(values).reshape(len(stubs), samples).mean(-1)


_FORMULA = re.compile(r"[^,;\n<>]*=[^,;\n<>]*")


@torch.no_grad()
def diversity(step: Step, *, formulas: float = 0.5) -> Tensor:
    """For right responses with right siblings: a mix of 1 - mean cosine similarity of their mean-pooled features to the siblings' and
    of the share of their formulas that no sibling has (weight `formulas`, where it has any); else 0. The features are the
    policy's own before the update, standing in for the sentence encoder of DSDR (arXiv 2602.19895)."""
    pooled = []
    for rows in torch.arange(len(step.ids_BT)).split(step.settings.micro_batch):
        score = step.score_BT[rows]
        hidden = scored(step.settings, step.actor.policy, step.ids_BT[rows], score, {}, on_hidden={"h": torch.Tensor.float})["h"]
        pooled.append(hidden.sum(1) / score.sum(-1, keepdim=True).clamp(min=1))
    unit_BH = torch.nn.functional.normalize(torch.cat(pooled), dim=-1)
    written = [{"".join(f.split()) for f in _FORMULA.findall(r.response.partition(prompting.END_THINK)[0])} for r in step.rollouts]
    right: dict[int, list[int]] = {}
    for row, r in enumerate(step.rollouts):
        if r.outcome == Outcome.CORRECT:
            right.setdefault(r.group_id, []).append(row)
    values = [0.0] * len(step.rollouts)
    for rows in right.values():
        for row in rows if len(rows) > 1 else []:
            others = [other for other in rows if other != row]
            distance = float((1 - unit_BH[others] @ unit_BH[row]).mean().clamp(0, 1))
            known = set().union(*(written[other] for other in others))
            own = len(written[row] - known) / len(written[row]) if written[row] else None
            values[row] = distance if own is None else (1 - formulas) * distance + formulas * own
    return step.tensor(values)


def reprompted(step: Step) -> list[list[int] | None]:
    """Per row: the prompt with a right sibling's response shown, None without one or where the context has no room (SDPO)."""
    first: dict[int, list[int]] = {}
    for row, r in enumerate(step.rollouts):
        if r.outcome == Outcome.CORRECT:
            first.setdefault(r.group_id, []).append(row)
    limit = step.actor.policy.config.max_position_embeddings
    prompts: list[list[int] | None] = []
    for row, (problem, r) in enumerate(zip(step.problems, step.rollouts, strict=True)):
        other = next((o for o in first.get(r.group_id, []) if o != row), None)
        if other is None:
            prompts.append(None)
            continue
        shown = replace(problem, prompt=f"{problem.prompt}\n\nA correct solution:\n{step.rollouts[other].response}\n\n{problem.prompt}")
        ids = prompting.prompt_ids(step.actor.tokenizer, shown, step.settings.answered.prompt)
        prompts.append(ids if len(ids) + len(r.response_ids) <= limit else None)
    return prompts
