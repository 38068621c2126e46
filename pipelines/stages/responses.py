"""Stored responses that a stage trains on: of other stages' rollouts, and of files, which hold pairs or scored responses, one a row.

    pair    {prompt | messages | problem_id, chosen, rejected}           texts, or messages whose last is the assistant's
    scored  {prompt | messages | problem_id, response, score | label}    a number (also called reward), or true and false

A scored row may say `baseline`, the reward that is expected of its prompt; a pair `margin`, by how much the better one's reward is larger, 1 without.

Rows without a prompt whose chosen and rejected are messages take the turns that both begin with.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines import paths, prompting, row_files, seeding
from pipelines.config.common import PromptSettings
from pipelines.config.preference import Responding
from pipelines.config.stage import FILES, ROLLOUTS
from pipelines.errors import UserError
from pipelines.models.loading import same_vocabulary
from pipelines.records import GUIDE, POLICY, PROMPT, Outcome, Problem, Segment, Trajectory, problem_id
from pipelines.rl.tensors import Asks
from pipelines.row_files import Malformed
from pipelines.stages import Context, rows
from pipelines.store import read_trajectories, to_problems

CHOSEN, REJECTED, RESPONSE = "chosen", "rejected", ("response", "completion")
SCORES = ("score", "reward")
Key = tuple[str, tuple[int, ...]]
"""Id of a problem, and the prompt that training sees."""


@dataclass
class Responses:
    """What was read. by_prompt: different responses to each prompt. pairs: as files give them, the better first. of: reference -> ids of problems.
    lacking: what is not known of some. too_long, several: how many were left out for their length, and episodes of several trajectories."""

    problems: dict[str, Problem] = field(default_factory=dict)
    by_prompt: dict[Key, dict[tuple[int, ...], Trajectory]] = field(default_factory=dict)
    pairs: list[tuple[Trajectory, Trajectory]] = field(default_factory=list)
    of: dict[str, set[str]] = field(default_factory=dict)
    lacking: set[Asks] = field(default_factory=set)
    too_long: int = 0
    several: int = 0


def read(context: Context, tokenizer: Any, longest: int, file: Callable[..., ResponseFile] | None = None) -> Responses:
    """All responses that the references of a stage give, `longest` tokens at most with their prompt. file: what reads a file; none: `ScoredFile`.

    Raises:
        UserError: a reference cannot be read, was sampled with another tokenizer, or has a row that is wrong; a condition without rows.
    """
    settings: Responding = context.settings
    files = [name for name in settings.data if name.endswith(FILES) and _holds_responses(context.root / name)]
    beside = {name: given for name, given in settings.data.items() if name not in files and not name.endswith(ROLLOUTS)}
    if not files and not settings.rollouts_read:
        named = ", ".join(beside)
        raise UserError(f"{context.stage}: data name no responses, but rows: {named}; add rollouts (STAGE{ROLLOUTS}) or a file of responses")
    if not beside and settings.where.model_dump(exclude_none=True):
        raise UserError(f"{context.stage}: where needs rows whose conditions are meant: name them in data beside the responses")
    found = Responses()
    for reference, table in rows.select(context, settings.model_copy(update={"data": beside})).items():
        given = to_problems(table)
        found.problems |= {problem.problem_id: problem for problem in given}
        found.of[reference] = {problem.problem_id for problem in given}
    known = set(found.problems) if beside else None
    for reference in settings.rollouts_read:
        _read_rollouts(context, found, reference, tokenizer, longest, known)
    for name in files:
        if settings.data[name].share is not None or settings.data[name].where.model_dump(exclude_none=True):
            raise UserError(f"{context.stage}: data: {name} holds responses and takes neither where nor share")
        (file or ScoredFile)(context.root, name, found, tokenizer, settings.prompt, longest).read()
    for kept in found.by_prompt.values():
        _prune(kept, settings.answers, (context.seed, context.stage))
    return found


def _read_rollouts(context: Context, found: Responses, reference: str, tokenizer: Any, longest: int, known: set[str] | None) -> None:
    settings: Responding = context.settings
    if not same_vocabulary(context.root / paths.rows(reference), tokenizer):
        raise UserError(f"{context.stage}: {reference} was sampled with another tokenizer than that of {settings.init}")
    for path in sorted((context.root / paths.rows(reference)).glob("*.parquet")):
        trajectories = [t for t in read_trajectories(path) if t.origin == POLICY and t.outcome != Outcome.INFRASTRUCTURE]
        several = {(t.group_id, t.sample_id) for t in trajectories if t.part}
        found.several += len(several)
        for t in trajectories:
            if (t.group_id, t.sample_id) in several or (known is not None and t.problem_id not in known):
                continue
            prompt, response = t.prompt_ids if t.trained_prompt is None else t.trained_prompt, tuple(t.response_ids)
            kept = found.by_prompt.setdefault((t.problem_id, tuple(prompt)), {})
            if response in kept:
                continue
            if len(prompt) + len(response) > longest:
                found.too_long += 1
                continue
            kept[response] = replace(t, segments=_stored(t, prompt), trained_prompt=None)
            found.of.setdefault(reference, set()).add(t.problem_id)
            if len(kept) >= 2 * settings.answers:
                _prune(kept, settings.answers, (context.seed, context.stage))
            if t.problem_id not in found.problems:
                found.lacking.add(Asks.PROBLEM)
                found.problems[t.problem_id] = Problem(t.problem_id, "", tokenizer.decode(prompt, skip_special_tokens=True), "", "text", "exact")


def _stored(trajectory: Trajectory, prompt: list[int]) -> list[Segment]:
    """The segments as another policy's, so that they have no age."""
    turns = [replace(s, author=GUIDE, versions=[0] * len(s.ids)) if s.author == POLICY else s for s in trajectory.turns]
    return [Segment(PROMPT, prompt), *turns]


def _prune(kept: dict[tuple[int, ...], Trajectory], most: int, key: tuple[object, ...]) -> None:
    """Leave the first `most` by hash, in that order."""
    ordered = sorted(kept, key=lambda response: seeding.key(*key, response))
    there = {response: kept[response] for response in ordered[:most]}
    kept.clear()
    kept.update(there)


def _holds_responses(path: Path) -> bool:
    """Whether the first row of a file is a response, and not a problem."""
    names = set(row_files.first(path))
    return bool(names & {CHOSEN, REJECTED, *RESPONSE})


class ResponseFile(ABC):
    """A file of responses, one a row. What is wrong with a row is told with its number, and nothing of the file is used. template: what stands around
    prompts. longest: tokens that a prompt with its response may have."""

    def __init__(self, root: Path, name: str, found: Responses, tokenizer: Any, template: PromptSettings, longest: int) -> None:
        self._path, self._name, self._found = root / paths.rows(name), name, found
        self._tokenizer, self._template, self._longest = tokenizer, template, longest

    def read(self) -> None:
        """Read all of it into `found`.

        Raises:
            UserError: there is no such file, or a row is wrong.
        """
        for number, row in row_files.rows(self._path):
            try:
                if isinstance(row, Malformed):
                    raise row
                self._read(row)
            except Malformed as wrong:
                raise UserError(f"{self._name}:{number}: {wrong}; a file that a stage reads must be read whole") from None
        self._found.lacking.add(Asks.BEHAVIOUR)

    @abstractmethod
    def _read(self, row: Mapping[str, Any]) -> None:
        """Take what one row says into `found`."""

    def _prompt(self, row: Mapping[str, Any]) -> tuple[Problem, list[int]]:
        """The problem, and its prompt as ids."""
        if "problem_id" in row:
            problem = self._found.problems.get(row["problem_id"])
            if problem is None:
                raise Malformed(f"problem_id: no row of data is called {row['problem_id']!r}")
            return problem, prompting.prompt_ids(self._tokenizer, problem, self._template)
        self._found.lacking.add(Asks.PROBLEM)
        baseline = _number(row, "baseline") if "baseline" in row else None
        name = next((name for name in ("messages", "prompt") if isinstance(row.get(name), list)), None)
        if name:
            turns = _messages(row[name], name)
            ids = prompting.turns_ids(self._tokenizer, turns)
            return self._problem("\n\n".join(turn["content"] for turn in turns), baseline), ids
        if not isinstance(row.get("prompt"), str):
            raise Malformed("expected a prompt (text or messages), messages, or the problem_id of a row beside the file")
        problem = self._problem(row["prompt"], baseline)
        return problem, prompting.prompt_ids(self._tokenizer, problem, self._template)

    def _problem(self, prompt: str, baseline: float | None) -> Problem:
        return Problem(problem_id(prompt, ""), "", prompt, "", "text", "exact", source=self._name, pass_rate=baseline)

    def _response(self, problem: Problem, prompt: list[int], text: str, ids: list[int] | None = None) -> Trajectory:
        if ids is None:
            ids = [*self._tokenizer(text, add_special_tokens=False)["input_ids"], self._tokenizer.eos_token_id]
        segments = [Segment(PROMPT, prompt), Segment(GUIDE, ids, versions=[0] * len(ids), trains=True)]
        return Trajectory(problem.problem_id, 0, 0, 0, self._name, segments, "stop", response=text)

    def _fits(self, response: Trajectory) -> bool:
        fits = len(response.prompt_ids) + len(response.response_ids) <= self._longest
        self._found.too_long += not fits
        return fits

    def _saw(self, problem: Problem) -> None:
        self._found.problems.setdefault(problem.problem_id, problem)
        self._found.of.setdefault(self._name, set()).add(problem.problem_id)


class ScoredFile(ResponseFile):
    """Pairs and scored responses."""

    def _read(self, row: Mapping[str, Any]) -> None:
        if CHOSEN in row or REJECTED in row:
            for name in (CHOSEN, REJECTED):
                row_files.value(row, name)
            shared = _shared(row) if not {"prompt", "messages", "problem_id"} & set(row) else []
            problem, prompt = self._prompt({**row, "messages": shared} if shared else row)
            better, worse = (self._response(problem, prompt, text_of(row, name)) for name in (CHOSEN, REJECTED))
            if better.response_ids == worse.response_ids:
                raise Malformed("chosen and rejected are the same")
            margin = _number(row, "margin") if "margin" in row else 1.0
            if margin <= 0:
                raise Malformed(f"margin: expected a number above 0, got {margin:g}")
            if self._fits(better) and self._fits(worse):
                self._found.pairs.append((replace(better, reward=margin), replace(worse, reward=0.0)))
                self._saw(problem)
            self._found.lacking.add(Asks.VERDICT)
            return
        name = next((name for name in RESPONSE if name in row), None)
        if name is None:
            raise Malformed(f"expected chosen and rejected, or response with one of label, {', '.join(SCORES)}; got {', '.join(row) or 'nothing'}")
        problem, prompt = self._prompt(row)
        reward, outcome = self._worth(row)
        response = replace(self._response(problem, prompt, text_of(row, name)), reward=reward, outcome=outcome)
        if self._fits(response):
            self._found.by_prompt.setdefault((problem.problem_id, tuple(prompt)), {}).setdefault(tuple(response.response_ids), response)
            self._saw(problem)

    def _worth(self, row: Mapping[str, Any]) -> tuple[float, str]:
        """Reward and outcome; a score is no verdict."""
        if "label" in row:
            if not isinstance(row["label"], bool):
                raise Malformed(f"label: expected true or false, got {row['label']!r}")
            return float(row["label"]), (Outcome.CORRECT if row["label"] else Outcome.WRONG).value
        name = next((name for name in SCORES if name in row), None)
        if name is None:
            raise Malformed(f"expected one of label, {', '.join(SCORES)} beside response")
        self._found.lacking.add(Asks.VERDICT)
        return _number(row, name), ""


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Malformed(f"{name}: expected a finite number, got {value!r}")
    return float(value)


def text_of(row: Mapping[str, Any], name: str) -> str:
    """A response as text: itself, or what the assistant says in the last of its messages."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    turns = _messages(value, name)
    if turns[-1]["role"] != "assistant":
        raise Malformed(f"{name}: the last message must be the assistant's, got role {turns[-1]['role']!r}")
    return turns[-1]["content"]


def _messages(value: Any, name: str) -> list[dict[str, str]]:
    wanted = isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)
    if not wanted or any(not isinstance(turn.get(part), str) for turn in value for part in ("role", "content")):
        raise Malformed(f"{name}: expected text, or messages of role and content, got {json.dumps(value, default=str)[:80]}")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _shared(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages that chosen and rejected both begin with, before their last."""
    first, second = (_messages(row.get(name), name)[:-1] for name in (CHOSEN, REJECTED))
    if first != second or not first:
        raise Malformed("there is no prompt, and chosen and rejected do not begin with the same messages")
    return first


def used(found: Responses, groups: Sequence[Sequence[Trajectory]]) -> dict[str, list[str]]:
    """Reference -> ids of the problems of these groups, for the record of what the stage has seen."""
    there = {trajectory.problem_id for group in groups for trajectory in group}
    return {reference: sorted(ids & there) for reference, ids in found.of.items()}


def told(found: Responses) -> str:
    """How much was read, and what was left out."""
    total = sum(map(len, found.by_prompt.values()))
    text = f"{total} responses to {len(found.by_prompt)} prompts and {len(found.pairs)} pairs of files; {found.too_long} were too long"
    return text + (f", {found.several} of several parts" if found.several else "")
