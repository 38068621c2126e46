"""out/rollouts.jsonl: what the program has sampled, judged by our verifiers, as the rollout files that every reader of this project knows.

A line is {step, problem_id, response} and, where the program knows them, {group, reward, finish_reason, prompt_ids, response_ids}. Steps do not fall.
Where ids are missing they are those of the text: of the prompt as this project puts it, of the response with the end of turn where it `stop`ped.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from pipelines import prompting
from pipelines.config.checking import nearest
from pipelines.config.common import PromptSettings
from pipelines.errors import UserError
from pipelines.records import Problem, Trajectory, one_turn
from pipelines.store import write_trajectories
from pipelines.verifiers import VerifierPool

ROLLOUTS = "rollouts.jsonl"
NEEDED = ("step", "problem_id", "response")
KNOWN = (*NEEDED, "group", "reward", "finish_reason", "prompt_ids", "response_ids")
LONGEST = 16 << 20
"""Bytes of a line."""
AT_ONCE = 4096
"""Rows of a step that are judged at once."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Reader:
    """Reads rows, and makes trajectories of them. problems: by id, those of the stage."""

    problems: Mapping[str, Problem]
    tokenizer: Any
    prompt: PromptSettings
    pool: VerifierPool
    policy: str

    def write(self, parts: Sequence[Path], folder: Path, show: Callable[[int], None]) -> int:
        """One file per step into `folder`; returns how many rollouts. parts: files of the runs of the program, in order: the first step of each says
        where it went on, and what earlier ones have of that step and later ones was done again.

        Raises:
            UserError: a line is malformed; names line and key.
        """
        starts = [next((row["step"] for row in self.rows(part)), None) for part in parts]
        written = 0
        for number, part in enumerate(parts):
            until = min((start for start in starts[number + 1 :] if start is not None), default=math.inf)
            last = number == len(parts) - 1
            rows = (row for row in self.rows(part, whole=last) if row["step"] < until)
            for step, of_step in groupby(rows, itemgetter("step")):
                trajectories = list(self._judged(step, of_step))
                write_trajectories(folder / f"step-{step:06d}.parquet", trajectories)
                written += len(trajectories)
                show(step)
        return written

    def rows(self, part: Path, *, whole: bool = False) -> Iterator[Row]:
        """Checked rows of a file, up to the first that is malformed where it is not `whole`: left by a run that was interrupted."""
        before = 0
        with part.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
                try:
                    row = self._checked(line)
                    if row["step"] < before:
                        raise ValueError(f"step {row['step']} comes after step {before}, and steps must not fall")
                except ValueError as error:
                    if not whole:
                        return
                    raise UserError(f"{ROLLOUTS} line {number}: {error}") from None
                before = row["step"]
                yield row

    def _checked(self, line: bytes) -> Row:
        if len(line) > LONGEST:
            raise ValueError(f"is longer than {LONGEST} bytes")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("is not JSON") from None
        if not isinstance(row, dict):
            raise ValueError(f"expected an object, got {type(row).__name__}")
        for name in row:
            if name not in KNOWN:
                raise ValueError(f"unknown key '{name}'{nearest(name, KNOWN)}")
        for name in NEEDED:
            if name not in row:
                raise ValueError(f"key '{name}' is missing")
        for name, value in row.items():
            if not _TYPES[name](value):
                raise ValueError(f"{name}: expected {_EXPECTED[name]}, got {json.dumps(value)[:60]}")
        if row["problem_id"] not in self.problems:
            raise ValueError(f"no row of this stage is problem '{row['problem_id']}'")
        for name in ("prompt_ids", "response_ids"):
            if over := [token for token in row.get(name, ()) if token >= len(self.tokenizer)]:
                raise ValueError(f"{name}: {over[0]} is no id of a vocabulary of {len(self.tokenizer)}")
        return row

    def _judged(self, step: int, rows: Iterator[Row]) -> Iterator[Trajectory]:
        """The rollouts of one step."""
        groups: dict[Any, int] = {}
        samples: dict[int, int] = {}
        while batch := list(islice(rows, AT_ONCE)):
            verdicts = self.pool.verify_batch([(self.problems[row["problem_id"]], row["response"]) for row in batch])
            for row, verdict in zip(batch, verdicts, strict=True):
                group = groups.setdefault((row["problem_id"], row.get("group")), len(groups))
                samples[group] = samples.get(group, -1) + 1
                finish = row.get("finish_reason", "stop")
                ids = row.get("response_ids")
                if ids is None:
                    end = [self.tokenizer.eos_token_id] if finish == "stop" else []
                    ids = [*self.tokenizer(row["response"], add_special_tokens=False)["input_ids"], *end]
                yield Trajectory(
                    problem_id=row["problem_id"], group_id=group, sample_id=samples[group], step=step, policy=self.policy,
                    segments=one_turn(row.get("prompt_ids") or self._prompt_ids(row["problem_id"]), ids, [], []), finish_reason=finish,
                    response=row["response"], outcome=verdict.outcome.value, extracted=verdict.extracted, detail=verdict.detail,
                    reward=float(row.get("reward", verdict.score)),
                )  # fmt: skip

    @functools.cached_property
    def _prompt_ids(self) -> Callable[[str], list[int]]:
        return functools.cache(lambda problem: prompting.prompt_ids(self.tokenizer, self.problems[problem], self.prompt))


def _whole(least: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 53


def _text(value: object) -> bool:
    return isinstance(value, str)


def _ids(value: object) -> bool:
    return isinstance(value, list) and all(_whole(0)(token) for token in value)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_TYPES: dict[str, Callable[[object], bool]] = {
    "step": _whole(1), "problem_id": _text, "response": _text, "group": _whole(0), "reward": _number, "finish_reason": _text,
    "prompt_ids": _ids, "response_ids": _ids,
}  # fmt: skip
_EXPECTED = {
    "step": "a number from 1 on", "problem_id": "text", "response": "text", "group": "a number from 0 on", "reward": "a finite number",
    "finish_reason": "text", "prompt_ids": "a list of token ids", "response_ids": "a list of token ids",
}  # fmt: skip
