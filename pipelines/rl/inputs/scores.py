"""What passes of a policy give: of the one that trains, before the update and in it, and of frozen ones.

N positions, V vocabulary, E hidden size. A score sees the log-probabilities of a chunk of positions and gives (N,) or (N, K). Keyword-only
arguments are settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pipelines import prompting
from pipelines.models import ranks
from pipelines.models.scoring import Score, chosen, pad
from pipelines.rl.account import place, trains
from pipelines.rl.inputs.step import Actor, Step, scored


def nucleus_entropy(
    logp_NV: Tensor, at: Mapping[str, Tensor], *, p: float = 0.8, rule: Literal["keep_top1", "strict", "inclusive"] = "keep_top1"
) -> Tensor:
    """Entropy over the likeliest tokens, renormalised (SIREN). Kept: those up to a cumulative mass of p, and at least the first
    (`keep_top1`) or possibly none (`strict`); `inclusive` also keeps the token that crosses p, as top-p sampling does."""
    ordered = logp_NV.sort(-1, descending=True)
    mass = ordered.values.detach().exp().cumsum(-1)
    keep = mass <= p if rule != "inclusive" else mass - ordered.values.detach().exp() < p
    if rule == "keep_top1":
        keep[:, 0] = True
    kept = ordered.values.masked_fill(~keep, -torch.inf)
    normalised = kept - kept.logsumexp(-1, keepdim=True)
    term = torch.where(keep, normalised.exp() * normalised.masked_fill(~keep, 0.0), 0.0)
    return torch.where(keep.any(-1), -term.sum(-1), 0.0)


def vocabulary_mean(logp_NV: Tensor, at: Mapping[str, Tensor]) -> Tensor:
    """Mean of the log-probabilities of all tokens."""
    return logp_NV.detach().mean(-1)


def squares(logp_NV: Tensor, at: Mapping[str, Tensor]) -> Tensor:
    """Sum over the vocabulary of the squared probabilities."""
    return (2 * logp_NV).exp().sum(-1)


def proxy(logp_NV: Tensor, at: Mapping[str, Tensor], *, kappa: float = 0.02) -> Tensor:
    """log-probability of the token once those below kappa times the likeliest are taken away (Lp-Reg); -1e4 when it is one of them."""
    keep = logp_NV >= logp_NV.max(-1, keepdim=True).values + torch.tensor(kappa).log().to(logp_NV)
    kept = logp_NV.masked_fill(~keep, -1e4)
    return chosen(kept - torch.where(keep, logp_NV, -torch.inf).logsumexp(-1, keepdim=True), at)


def likeliest(logp_NV: Tensor, at: Mapping[str, Tensor], *, k: int = 100) -> Tensor:
    """Ids of the k likeliest tokens."""
    return logp_NV.topk(min(k, logp_NV.shape[-1] - 1), -1).indices


def of_topk(logp_NV: Tensor, at: Mapping[str, Tensor]) -> Tensor:
    """log-probabilities of the tokens `topk_BTK`."""
    return logp_NV.gather(-1, at["topk_BTK"])


def of_allowed(logp_NV: Tensor, at: Mapping[str, Tensor]) -> Tensor:
    """log-probability of the token among those that it was drawn from, `allowed_BTK`; among all where that says nothing."""
    bits_NK8 = (at["allowed_BTK"][..., None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=logp_NV.device)) & 1
    allowed_NV = bits_NK8.flatten(1)[:, : logp_NV.shape[1]].bool()
    left_out = ~allowed_NV & allowed_NV.any(-1, keepdim=True)
    return chosen(logp_NV, at) - logp_NV.masked_fill(left_out, -torch.inf).logsumexp(-1)


def of_stored(logp_NV: Tensor, at: Mapping[str, Tensor]) -> Tensor:
    """log-probabilities of the tokens `stored_topk_BTK`."""
    return logp_NV.gather(-1, at["stored_topk_BTK"])


def reserved(tokenizer: Any, *, token: str | None = None) -> int:
    """Id of the reserved token whose probability after a response is its verdict on itself; the padding token unless named."""
    return tokenizer.pad_token_id if token is None else tokenizer.convert_tokens_to_ids(token)


def value_logits(actor: Actor) -> Callable[[Tensor], Tensor]:
    """What the value head says (N, K) of what the language-model head sees, float32."""
    head = actor.value_head
    assert head is not None
    return lambda hidden_NE: head.said(hidden_NE.detach() if actor.warming else hidden_NE)


def value(actor: Actor) -> Callable[[Tensor], Tensor]:
    """The value head's estimate (N,) of what the language-model head sees, float32."""
    said, head = value_logits(actor), actor.value_head
    assert head is not None
    return lambda hidden_NE: head.value(said(hidden_NE))


def value_before(actor: Actor, *, warmup: int = 0, epochs: int = 4, enough: float = 0.5) -> Callable[[Tensor], Tensor]:
    """`value`. The settings are of the loop (critic_warmup.py): in up to `warmup` steps only the value head learns, by `epochs` passes over each
    batch, until it explains more than `enough` of the variance of the returns."""
    return value(actor)


def projected(actor: Actor, *, size: int = 64) -> Callable[[Tensor], Tensor]:
    """It in `size` dimensions (N, K), by a map that stands beside the value head and learns, float32."""
    projection = actor.value_head.projection if actor.value_head else None
    assert projection is not None

    def mapped(hidden_NE: Tensor) -> Tensor:
        with torch.autocast(hidden_NE.device.type, enabled=False):
            return projection(hidden_NE.float())

    return mapped


def hidden(actor: Actor) -> Callable[[Tensor], Tensor]:
    """It itself (N, E), float32."""
    return torch.Tensor.float


@torch.no_grad()
def in_parts(step: Step, model: Any, wanted: Mapping[str, Score], temperature_B: Tensor | None = None, **more: Any) -> dict[str, Tensor]:
    """`token_scores` of the step's rows under `model`, in micro-batches, at the temperature of sampling unless given one a row."""
    size = step.settings.micro_batch
    if temperature_B is None:
        temperature_B = torch.full((len(step.ids_BT),), step.settings.answered.temperature, device=step.ids_BT.device)
    slices = zip(step.ids_BT.split(size), step.score_BT.split(size), temperature_B.split(size), strict=True)
    parts = [scored(step.settings, model, ids, score, wanted, temperature=temperature, **more) for ids, score, temperature in slices]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def of_frozen(role: str) -> Callable[[Step], Tensor]:
    """log-probabilities under the frozen policy `role`."""

    def logp(step: Step) -> Tensor:
        return in_parts(step, step.actor.frozen[role], {"logp": chosen})["logp"]

    return logp


def of_critic(step: Step) -> Tensor:
    """What the head of the frozen critic says before each token (B, T)."""
    critic: Actor = step.actor.frozen["critic"]
    return in_parts(step, critic.policy, {}, on_hidden={"value": value(critic)})["value"]


def tempered(step: Step, *, floor: float = 0.5) -> Tensor:
    """The reference with its logits times floor + (1 - floor) reward, renormalised: flatter for responses of low reward (RAPO)."""
    temperature_B = step.settings.answered.temperature / (floor + (1 - floor) * step.batch.reward_B.clamp(0, 1))
    return in_parts(step, step.actor.frozen["ref"], {"logp": chosen}, temperature_B)["logp"]


@torch.no_grad()
def expert(step: Step) -> Tensor:
    """The policy's log-probability of the problem's worked solution at the response's positions, 0 past its end (CalibRL); nan where
    a problem has no solution."""
    own = step.batch.logp_old_BT
    out = torch.full_like(own, torch.nan).where(step.score_BT, 0.0)
    for row, (problem, r) in enumerate(zip(step.problems, step.rollouts, strict=True)):
        if problem.solution is None:
            continue
        solution = prompting.response_ids(step.actor.tokenizer, problem, step.settings.answered.prompt)
        ids = pad([[*r.prompt_ids, *solution]], device=own.device)
        score = torch.arange(ids.shape[1], device=own.device)[None] >= len(r.prompt_ids)
        temperature = step.settings.answered.temperature
        logp = scored(step.settings, step.actor.policy, ids, score, {"logp": chosen}, temperature=temperature)["logp"][0, len(r.prompt_ids) :]
        start, end = len(r.prompt_ids), len(r.prompt_ids) + len(r.response_ids)
        out[row, start:end] = torch.nn.functional.pad(logp, (0, max(0, len(r.response_ids) - len(logp))))[: end - start]
    return out


@torch.no_grad()
def mismatched(step: Step) -> Tensor:
    """sum_t log(pi/ref) (B,) of the response that comes next in the batch to another prompt, under the row's own prompt and before the update: KTO's
    mismatched pairs. Next is meant over all processes; a response is cut where the context ends."""
    mine = [(place(r), r.prompt_ids if r.trained_prompt is None else r.trained_prompt, r.response_ids, trains(r)) for r in step.rollouts]
    rows = sorted(row for part in ranks.collect([mine]) for row in part)
    limit, size = step.actor.policy.config.max_position_embeddings, step.settings.micro_batch
    wholes: list[tuple[list[int], list[int], list[bool]]] = []
    for row in mine:
        after = (rows * 2)[rows.index(row) + 1 :][: len(rows) - 1] or [row]
        _, _, response, counts = next((other for other in after if other[1] != row[1]), after[0])
        room = max(1, limit - len(row[1]))
        wholes.append((row[1], response[:room], counts[:room]))
    sums = []
    for start in range(0, len(wholes), size):
        part = wholes[start : start + size]
        ids = pad([[*prompt, *response] for prompt, response, _ in part], device=step.ids_BT.device)
        score, count = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for at, (prompt, response, counts) in enumerate(part):
            score[at, len(prompt) : len(prompt) + len(response)] = True
            count[at, len(prompt) : len(prompt) + len(response)] = torch.tensor(counts, device=ids.device)
        how = {"temperature": step.settings.answered.temperature}
        policy, ref = (
            scored(step.settings, model, ids, score, {"logp": chosen}, **how)["logp"] for model in (step.actor.policy, step.actor.frozen["ref"])
        )
        sums.append(((policy - ref) * count).sum(-1))
    return torch.cat(sums)


def special_anchor(step: Step, *, value: float | None = None) -> Tensor:
    """Expected log-probability of the reserved token after a response: `value`, or its mean under the policy before the first update,
    which is the reference (LaSeR)."""
    if value is not None:
        return torch.tensor(value, device=step.ids_BT.device)
    special_B = step.batch["special_old_B"]
    sums = ranks.total({"sum": float(special_B.double().sum()), "rows": len(special_B)})
    return torch.tensor(sums["sum"] / sums["rows"], dtype=special_B.dtype, device=special_B.device)
