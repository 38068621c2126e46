"""Kind distil: the model that `init` names learns from teachers, who judge its own tokens, or whose outputs are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import paths, row_files
from pipelines.config.distil import EVERY, DistilStage
from pipelines.errors import UserError
from pipelines.models import ranks
from pipelines.models.loading import load_policy
from pipelines.records import Problem
from pipelines.rl import stored
from pipelines.rl.recipe import Recipe, recipe
from pipelines.rl.roles import untaught
from pipelines.rl.teachers import Output, Outputs, Teacher, Teachers
from pipelines.row_files import Malformed
from pipelines.stages import Context, rows
from pipelines.stages.learning import learn
from pipelines.stages.responses import ResponseFile, Responses, text_of, used
from pipelines.store import to_problems
from pipelines.verifiers import require_sandbox_for


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME> and, where the policy answers, data/rollouts/<NAME>.

    Raises:
        UserError: the recipe has no part for teachers, nobody teaches a domain, or the file of outputs cannot be used.
    """
    settings: DistilStage = context.settings
    chosen = recipe(settings.recipe, **settings.overrides)
    if sentence := untaught(chosen, "teachers" if settings.leaves_rollouts else "stored"):
        raise UserError(f"{context.stage}: recipe {sentence}")
    with ranks.joined(context.device) as device:
        return _on_policy(context, chosen, device) if settings.leaves_rollouts else _stored(context, chosen, device)


def _on_policy(context: Context, chosen: Recipe, device: str) -> dict[str, float]:
    settings: DistilStage = context.settings
    problems = rows.read(context, settings)
    require_sandbox_for(problems)
    teachers = _teachers(context, problems, device)
    made = learn(context, __name__, chosen, problems, device, beside={"teachers": teachers}, reads=map(paths.rows, settings.rows_read))
    return made | {"problems": float(len(problems)), "teachers": float(len({id(each) for each in teachers.by_domain.values()}))}


def _teachers(context: Context, problems: Sequence[Problem], device: str) -> Teachers:
    """
    Raises:
        UserError: nobody teaches a domain, or a teacher of the student's tokens has a shorter context.
    """
    settings: DistilStage = context.settings
    missing = sorted({problem.domain for problem in problems} - set(settings.teachers))
    if missing and EVERY not in settings.teachers:
        raise UserError(f"{context.stage}: teachers name none for domain {', '.join(missing)}; add it, or '{EVERY}' for every other domain")
    student, tokenizer = load_policy(context.root / paths.model(settings.init))
    loaded: dict[str, Teacher] = {}
    for name in dict.fromkeys(settings.teachers.values()):
        policy, theirs = load_policy(context.root / paths.model(name), device)
        same = theirs.get_vocab() == tokenizer.get_vocab()
        if same and policy.config.max_position_embeddings < student.config.max_position_embeddings:
            raise UserError(
                f"{context.stage}: teacher {name} reads {policy.config.max_position_embeddings} tokens and the student up to "
                f"{student.config.max_position_embeddings}; choose a teacher with the student's context"
            )
        loaded[name] = Teacher(policy.eval().requires_grad_(False), None if same else theirs)
    return Teachers({domain: loaded[name] for domain, name in settings.teachers.items()})


def _stored(context: Context, chosen: Recipe, device: str) -> dict[str, float]:
    settings: DistilStage = context.settings
    student, tokenizer = load_policy(context.root / paths.model(settings.init))
    assert settings.stored is not None
    found = Responses()
    for reference, table in rows.select(context, settings).items():
        given = to_problems(table)
        found.problems |= {problem.problem_id: problem for problem in given}
        found.of[reference] = {problem.problem_id for problem in given}
    file = _OutputFile(context.root, settings.stored, found, tokenizer, settings.generation.prompt, student.config.max_position_embeddings)
    file.temperature = settings.generation.temperature
    file.read()
    stored.refuse(chosen, found.lacking)
    groups = [[trajectory] for kept in found.by_prompt.values() for trajectory in kept.values()]
    if not groups:
        raise UserError(f"{context.stage}: {settings.stored} has no output that fits into the student's context; {found.too_long} are too long")
    context.journal.say(f"{len(groups)} outputs for {len(found.by_prompt)} prompts; {found.too_long} were too long")
    rows.see(context, used(found, groups))
    read = map(paths.rows, settings.rows_read)
    beside = {"stored": Outputs(file.outputs)}
    made = learn(context, __name__, chosen, list(found.problems.values()), device, stored=groups, beside=beside, reads=read)
    return made | {"outputs": float(len(groups)), "too_long": float(found.too_long)}


class _OutputFile(ResponseFile):
    """Outputs of teachers: {.., response}, which is trained as it stands, or {.., tokens, topk, logp, temperature?}. outputs: what was kept beside
    the tokens. temperature: the student's."""

    outputs: dict[tuple[str, tuple[int, ...]], Output]
    temperature: float

    def read(self) -> None:
        self.outputs = {}
        super().read()

    def _read(self, row: Mapping[str, Any]) -> None:
        problem, prompt = self._prompt(row)
        output = None
        if "tokens" in row:
            ids, output = self._tokens(row)
            response = self._response(problem, prompt, self._tokenizer.decode(ids), ids)
        elif "response" in row:
            response = self._response(problem, prompt, text_of(row, "response"))
        else:
            raise Malformed(f"expected response, or tokens with topk and logp; got {', '.join(row) or 'nothing'}")
        if not self._fits(response):
            return
        self._found.by_prompt.setdefault((problem.problem_id, tuple(prompt)), {}).setdefault(tuple(response.response_ids), response)
        if output is not None:
            self.outputs.setdefault((problem.problem_id, tuple(response.response_ids)), output)
        self._saw(problem)

    def _tokens(self, row: Mapping[str, Any]) -> tuple[list[int], Output]:
        """The ids of a response, and what the teacher said of each."""
        ids, topk, logp = (row_files.value(row, name) for name in ("tokens", "topk", "logp"))
        known = range(len(self._tokenizer))
        if (told := row.get("temperature", 1.0)) != self.temperature:
            raise Malformed(f"temperature: the log-probabilities are of temperature {told}, and generation.temperature is {self.temperature:g}")
        if not _ids(ids, known) or not ids:
            raise Malformed(f"tokens: expected ids of the student's tokenizer, 0 to {len(known) - 1}")
        if not isinstance(topk, list) or len(topk) != len(ids) or not all(each and _ids(each, known, once=True) for each in topk):
            raise Malformed(f"topk: expected a list of different ids for each of the {len(ids)} tokens")
        if not isinstance(logp, list) or [len(each) if isinstance(each, list) else -1 for each in logp] != [len(each) for each in topk]:
            raise Malformed("logp: expected a log-probability for each id of topk")
        for number, values in enumerate(logp):
            if not all(isinstance(v, int | float) and not isinstance(v, bool) and v <= 0 for v in values) or sum(map(math.exp, values)) > 1 + 1e-3:
                raise Malformed(f"logp: of token {number}: expected log-probabilities whose probabilities add up to at most 1, got {values!r}"[:200])
        return ids, Output(topk, logp)


def _ids(value: Any, known: range, once: bool = False) -> bool:
    """Whether it is a list of ids, of which none stands there twice where each may stand `once`."""
    found = isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) and each in known for each in value)
    return found and not (once and len(set(value)) < len(value))

