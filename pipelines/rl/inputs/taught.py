"""Inputs from models that teach (rl/teachers.py), or that taught and left what they said.

A teacher whose tokenizer is another than the student's is asked about the same text in its own tokens, behind the problem in its own chat template.
Both tokenisations are cut where they come to the same place between two characters; on each span the student's tokens share the gap of the sums,

    log pi_teacher := log pi_old + (sum over the span of log pi_teacher - sum of log pi_old) / (number of the student's tokens)

so that their gaps add up to the span's. (Our construction; with equal tokenizers each span is one token and this is the teacher's log-probability.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines import prompting
from pipelines.errors import UserError
from pipelines.models.scoring import chosen, pad
from pipelines.rl.inputs.scores import of_topk
from pipelines.rl.inputs.step import Step, scored
from pipelines.rl.objectives.distillation import NONE
from pipelines.rl.teachers import Span, Teacher, spans, token_ends


def logp(step: Step) -> Tensor:
    """log-probability (B, T) of the student's tokens under the teacher of the row's domain. Where a teacher of other tokens has no room for the
    response it is the student's own before the update, so that there is no gap."""
    old_BT = step.batch.logp_old_BT
    out_BT = old_BT.clone()
    for teacher, rows in _by_teacher(step):
        for part in _parts(rows, step.settings.micro_batch):
            if teacher.tokenizer is None:
                where = {"temperature": step.settings.answered.temperature}
                with torch.no_grad():
                    out_BT[part] = scored(step.settings, teacher.policy, step.ids_BT[part], step.score_BT[part], {"logp": chosen}, **where)["logp"]
            else:
                _of_other_tokens(step, teacher, part, out_BT)
    return out_BT


def topk(step: Step) -> Tensor:
    """log-probabilities (B, T, K) of the tokens `topk_BTK` under the teacher of the row's domain.

    Raises:
        UserError: it reads other tokens than the student.
    """
    topk_BTK = step.batch["topk_BTK"]
    out_BTK = torch.zeros(topk_BTK.shape, device=topk_BTK.device)
    for teacher, rows in _by_teacher(step):
        if teacher.tokenizer is not None:
            raise UserError("a teacher whose tokenizer is another than the student's knows none of its tokens: take on_policy_distillation")
        for part in _parts(rows, step.settings.micro_batch):
            how = {"temperature": step.settings.answered.temperature, "along": {"topk_BTK": topk_BTK[part]}}
            with torch.no_grad():
                out_BTK[part] = scored(step.settings, teacher.policy, step.ids_BT[part], step.score_BT[part], {"topk": of_topk}, **how)["topk"]
    return out_BTK


def stored_ids(step: Step) -> Tensor:
    """Ids (B, T, K) that a teacher kept of each token of the response, K the most of any in the step; 0 where there are fewer."""
    return _stored(step, 0, 0).long()


def stored_logp(step: Step) -> Tensor:
    """Their log-probabilities (B, T, K); NONE where there are fewer."""
    return _stored(step, 1, NONE)


def _stored(step: Step, part: int, fill: float) -> Tensor:
    outputs = [step.actor.frozen["stored"].of(r) for r in step.rollouts]
    width = step.actor.frozen["stored"].width
    made = torch.full((*step.ids_BT.shape, width), fill, dtype=torch.float64, device=step.ids_BT.device)
    rows = [[*entries, *[fill] * (width - len(entries))] for output in outputs for entries in (output.ids, output.logp)[part]]
    made[step.score_BT] = torch.tensor(rows, dtype=torch.float64, device=made.device)
    return made.to(torch.float32) if part else made


def _by_teacher(step: Step) -> list[tuple[Teacher, list[int]]]:
    """Each teacher with its rows."""
    rows: dict[int, list[int]] = defaultdict(list)
    teachers = [step.actor.frozen["teachers"].of(problem.domain) for problem in step.problems]
    for row, teacher in enumerate(teachers):
        rows[id(teacher)].append(row)
    return [(teachers[found[0]], found) for found in rows.values()]


def _parts(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _of_other_tokens(step: Step, teacher: Teacher, rows: Sequence[int], out_BT: Tensor) -> None:
    """Write the aligned log-probabilities of these rows.

    Raises:
        UserError: an answer has several turns.
    """
    student, room = step.actor.tokenizer, teacher.policy.config.max_position_embeddings
    asked: list[tuple[int, list[int], list[int], list[Span]]] = []
    for row in rows:
        rollout = step.rollouts[row]
        if not all(segment.trains for segment in rollout.turns):
            raise UserError("a teacher of other tokens is asked about answers of one turn, and one has several: take one of the student's")
        ids = rollout.response_ids
        ended = bool(ids) and ids[-1] == student.eos_token_id
        body = ids[:-1] if ended else ids
        theirs = teacher.tokenizer(student.decode(body), add_special_tokens=False)["input_ids"]
        found = aligned(student, body, teacher.tokenizer, theirs)
        if found is None:
            continue
        if ended:
            found.append(Span((len(body), len(ids)), (len(theirs), len(theirs) + 1)))
            theirs = [*theirs, teacher.tokenizer.eos_token_id]
        prompt = prompting.prompt_ids(teacher.tokenizer, step.problems[row], step.settings.answered.prompt)
        if len(prompt) + len(theirs) <= room and theirs:
            asked.append((row, prompt, theirs, found))
    if not asked:
        return
    ids_BT = pad([[*prompt, *theirs] for _, prompt, theirs, _ in asked], device=out_BT.device)
    score_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for at, (_, prompt, theirs, _) in enumerate(asked):
        score_BT[at, len(prompt) : len(prompt) + len(theirs)] = True
    with torch.no_grad():
        said_BT = scored(step.settings, teacher.policy, ids_BT, score_BT, {"logp": chosen}, temperature=step.settings.answered.temperature)["logp"]
    for at, (row, prompt, _, found) in enumerate(asked):
        start = int(step.score_BT[row].int().argmax())
        for span in found:
            (a, b), (c, d) = span.student, span.teacher
            mine = out_BT[row, start + a : start + b]
            gap = said_BT[at, len(prompt) + c : len(prompt) + d].sum() - mine.sum()
            out_BT[row, start + a : start + b] = mine + gap / (b - a)


def aligned(student: object, ids: Sequence[int], teacher: object, theirs: Sequence[int]) -> list[Span] | None:
    """Spans of one text in the tokens of both; None where the teacher's tokens do not give the text back, as where its vocabulary lacks a
    character."""
    try:
        return spans(token_ends(student, ids), token_ends(teacher, theirs))
    except ValueError:
        return None
