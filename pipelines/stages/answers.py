"""Answers of a policy to rows, judged and kept as they come: what kinds grade and sample share.

An answer depends on (seed, stage, row, number) and on the policy, so what was asked once is not asked again: each batch is stored when it is judged,
in a folder whose name covers the policy, how it is sampled and the code. A kill loses the batch under way. The folder outlives the run: another band,
more rows, more samples or one more policy ask only what is new. Where an endpoint answers or judges, the stage's manifest must say what it said,
so there answers last until the stage is recorded, and the endpoint's replies beyond that.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import paths, prompting, verifiers
from pipelines.config.common import GenerationSettings
from pipelines.config.stage import Served
from pipelines.generation import Generator, create, respond
from pipelines.lineage.code import code_sha256
from pipelines.lineage.digests import combine, file_sha256, tree_sha256
from pipelines.models.loading import load_tokenizer
from pipelines.records import Dropped, Outcome, Problem, Verdict
from pipelines.stages import Context
from pipelines.stages.identity import folder_of
from pipelines.stages.judging import judge_of
from pipelines.store import forget_torn, read_json, write_table

FOLDER = "answers"
"""Below the stage's working folder, a folder for each policy."""
OPEN_FILES = 8
"""Stored batches that are held in memory at once; rows that follow each other stand in one or two."""
SCHEMA = pa.schema(
    [
        ("row", pa.string()),
        ("number", pa.int64()),
        ("ids", pa.list_(pa.int32())),
        ("logp", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
        ("text", pa.string()),
        ("outcome", pa.string()),
        ("score", pa.float64()),
        ("extracted", pa.string()),
        ("detail", pa.string()),
    ]
)
"""A judged answer. row: digest of all of the row that answer and verdict depend on."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a row. number: which, counted from 0. logp: as of `Sample`, in float32; empty where the engine does not know."""

    number: int
    ids: list[int]
    logp: list[float]
    finish_reason: str
    text: str
    verdict: Verdict


Enough = Callable[[Sequence[Answer], int], bool]
"""(answers to a row so far, how many could still come) -> whether it needs no more."""


def all_of_them(_: Sequence[Answer], left: int) -> bool:
    """Every row gets as many answers as it may have."""
    return left == 0


class Policy:
    """One policy that a stage asks. A context manager: at its end the engine is closed."""

    def __init__(
        self, context: Context, model: str, generation: GenerationSettings, problems: Iterable[Problem], work: dict[str, object], judge: Served | None
    ) -> None:
        """work: identity of this run of the stage, for what must not outlive it. problems: those that will be asked. judge: of those whose
        verifier is `judge`."""
        self.generation, self._context = generation, context
        self._model = context.root / paths.model(model)
        self.tokenizer = load_tokenizer(self._model, chat=False)
        key = combine(
            {
                "code": code_sha256(__name__),
                "policy": tree_sha256(self._model),
                "sampling": generation.model_dump_json(exclude={"batch_size"}),  # which changes memory and speed alone
                "script": file_sha256(Path(generation.script)) if generation.script else "",
                "run": f"{context.seed} {context.stage} {context.device}",
                "judge": judge.model_dump_json() + tree_sha256(context.root / paths.model(judge.stage)) if judge else "",
            }
        )
        self.folder = context.work / FOLDER / key
        endpoint = generation.engine == "server" or (judge is None and any(problem.verifier == "judge" for problem in problems))
        self._kept = _Kept(folder_of(context, work) / key if endpoint else self.folder)
        self._engine: Generator | None = None
        self._judge = judge_of(context, judge, context.device)

    def __enter__(self) -> Policy:
        self._pool = verifiers.VerifierPool(judge=self._judge).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(None, None, None)
        if self._engine:
            self._engine.close()

    def fitting(self, problems: Sequence[Problem]) -> tuple[list[Problem], list[Dropped]]:
        """Problems whose prompt and longest answer fit the model's context; the rest as `prompt_exceeds_context`. An endpoint says itself what it
        cannot read."""
        if self.generation.engine == "server":
            return list(problems), []
        config = read_json(self._model / "config.json")
        room = config.get("max_position_embeddings", float("inf")) - self.generation.max_new_tokens
        kept, dropped = [], []
        for problem in problems:
            length = len(self.prompt(problem))
            if length <= room:
                kept.append(problem)
            else:
                dropped.append(Dropped(problem, self._context.settings.kind, "prompt_exceeds_context", f"{length} tokens, room for {room}"))
        return kept, dropped

    def prompt(self, problem: Problem) -> list[int]:
        """What the policy is asked, as token ids."""
        return prompting.prompt_ids(self.tokenizer, problem, self.generation.prompt)

    def answers(
        self, problems: Sequence[Problem], samples: int, together: int | None = None, enough: Enough = all_of_them
    ) -> Iterator[list[Answer]]:
        """Answers to each problem in order, `together` of them at a time until they are `enough`, `samples` at most."""
        together = min(together or samples, samples)
        size = max(1, self.generation.batch_size // together)
        for start in range(0, len(problems), size):
            yield from self._batch(problems[start : start + size], samples, together, enough)

    def _batch(self, batch: Sequence[Problem], samples: int, together: int, enough: Enough) -> list[list[Answer]]:
        rows = [digest(problem) for problem in batch]
        found: list[list[Answer]] = [[] for _ in batch]
        open_rows = list(range(len(batch)))
        for first in range(0, samples, together):
            numbers = range(first, min(first + together, samples))
            lacking = {i: next((n for n in numbers if (rows[i], n) not in self._kept), numbers.stop) for i in open_rows}
            for begin in sorted({*lacking.values()} - {numbers.stop}):
                self._ask([(rows[i], batch[i]) for i in open_rows if lacking[i] == begin], begin, numbers.stop - begin)
            for i in open_rows:
                found[i] += [self._kept[rows[i], number] for number in numbers]
            open_rows = [i for i in open_rows if not enough(found[i], samples - numbers.stop)]
            if not open_rows:
                break
        return found

    def _ask(self, asked: Sequence[tuple[str, Problem]], first: int, count: int) -> None:
        """Have these rows answered and judged, and keep that."""
        if self._engine is None:
            self._engine = create(self.generation, self._model, self._context.device, self.folder / paths.REPLIES)
        problems = [problem for _, problem in asked]
        groups = respond(self._engine, problems, count, (self._context.seed, self._context.stage), first=first)
        verdicts = iter(self._pool.verify_batch([(p, sample.text) for p, group in zip(problems, groups, strict=True) for sample in group]))
        self._kept.add(
            [
                (row, Answer(first + i, sample.token_ids, sample.logp, sample.finish_reason, sample.text, next(verdicts)))
                for (row, _), group in zip(asked, groups, strict=True)
                for i, sample in enumerate(group)
            ]
        )


def forget_others(context: Context, policies: Iterable[Policy]) -> None:
    """Remove what policies answered that the settings name no longer."""
    names = {policy.folder.name for policy in policies}
    for folder in (context.work / FOLDER).glob("*"):
        if folder.name not in names:
            shutil.rmtree(folder)


def digest(problem: Problem) -> str:
    """Of all of a row that its answers and verdicts depend on."""
    told = [problem.problem_id, problem.prompt, problem.answer, problem.answer_type, problem.verifier, problem.verifier_args]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


class _Kept:
    """Answers in the files of one folder, by row and number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read = functools.lru_cache(OPEN_FILES)(_answers)
        self._places: dict[tuple[str, int], Path | Answer] = {}
        forget_torn(folder)
        self._files = sorted(folder.glob("*.parquet"))
        for file in self._files:
            self._enter(file, pq.read_table(file, columns=["row", "number"]))

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._places

    def __getitem__(self, key: tuple[str, int]) -> Answer:
        place = self._places[key]
        return place if isinstance(place, Answer) else self._read(place)[key]

    def add(self, answers: Sequence[tuple[str, Answer]]) -> None:
        """Store a batch. What the machine failed to judge is judged again next time, so it is used but not stored."""
        judged = [(row, answer) for row, answer in answers if answer.verdict.outcome is not Outcome.INFRASTRUCTURE]
        self._places |= {(row, answer.number): answer for row, answer in answers if answer.verdict.outcome is Outcome.INFRASTRUCTURE}
        if judged:
            file, table = self._folder / f"{len(self._files):08d}.parquet", pa.Table.from_pylist([_row(*each) for each in judged], SCHEMA)
            write_table(file, table)
            self._files.append(file)
            self._enter(file, table)

    def _enter(self, file: Path, table: pa.Table) -> None:
        self._places |= dict.fromkeys(zip(table["row"].to_pylist(), table["number"].to_pylist(), strict=True), file)


def _row(row: str, answer: Answer) -> dict[str, object]:
    verdict = answer.verdict
    return {
        "row": row, "number": answer.number, "ids": answer.ids, "logp": answer.logp, "finish_reason": answer.finish_reason, "text": answer.text,
        "outcome": verdict.outcome.value, "score": verdict.score, "extracted": verdict.extracted, "detail": verdict.detail,
    }  # fmt: skip


def _answers(file: Path) -> dict[tuple[str, int], Answer]:
    """All answers of one file."""
    return {
        (each["row"], each["number"]): Answer(
            each["number"], each["ids"], each["logp"], each["finish_reason"], each["text"],
            Verdict(Outcome(each["outcome"]), each["score"], each["extracted"], each["detail"]),
        )
        for each in pq.read_table(file).to_pylist()
    }  # fmt: skip
