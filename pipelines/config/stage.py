"""params.yaml: what the kinds of stages have in common: models that they start from, rows that they read, by name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pipelines.config.common import Rate, Section, Share, Span, canonical

FILES = (".jsonl", ".parquet")
"""Endings of a file of the user's own."""
TEXT = ".txt"
"""Ending of a file of plain text; kind pretrain reads it."""
OUTPUTS = "/outputs"
"""Ending of a reference to what a teacher has said of answers' tokens, of kind sample with `outputs`; kind distil reads it under `stored`."""
ROLLOUTS = "/rollouts"
"""Ending of a reference to what a stage has sampled, of kind rl or a command with rollouts; kind sft reads it."""


BOUND = 0.55
"""Least lower end of the interval of a reward model's held-out accuracy, where nobody says otherwise."""


class Served(Section):
    """A stage of kind reward_model, at work in another stage."""

    stage: str
    """Its name."""
    bound: Share = BOUND
    """It is refused where the 95 % interval of its held-out accuracy begins below this; 0.5 is what guessing has."""
    principle: str | None = None
    """Of one with loss entailment: what responses are held to; null: the stage's own `principle`."""


class Where(Section):
    """Conditions on rows; all that are given must hold."""

    domain: tuple[str, ...] | None = None
    """One of these domains."""
    source: tuple[str, ...] | None = None
    """From one of these sources."""
    topics: tuple[str, ...] | None = None
    """Has one of these topics."""
    pass_rate: Span[Share] | None = None
    """Pass rate inside this closed interval; a row that was never graded has none and is left out."""
    sql: str | None = None
    """A condition in SQL over the problem's columns, such as `length(prompt) < 300 and pass_n >= 8`."""


class Rows(Section):
    """Rows of one reference."""

    where: Where = Where()
    """Beside the condition of the whole stage."""
    share: Rate | None = None
    """Share of all rows that come from here, relative to the other shares; null takes every row. Either all references of a stage have one
    or none. The largest mix with these shares is taken, its rows drawn by hash of their ids."""


def _by_name(given: Any) -> Any:
    """`NAME` and `[NAME, ...]` as the mapping that they stand for; the order in which somebody wrote them decides nothing."""
    if isinstance(given, str):
        return {given: {}}
    if isinstance(given, list | tuple):
        if wrong := [name for name in given if not isinstance(name, str)]:
            raise ValueError(f"expected names of rows, got {wrong[0]!r}; what is read of each stands in a mapping: {{NAME: {{where, share}}}}")
        given = {name: {} for name in given}
    return canonical({name: {} if rows is None else rows for name, rows in given.items()}) if isinstance(given, dict) else given


Data = Annotated[dict[str, Rows], BeforeValidator(_by_name), Field(min_length=1)]
"""Reference -> what of it is read. A reference is `curation/SPLIT`, a stage that makes rows (`difficulty`, or another file of it:
`difficulty/graded`), or a file of the project's own (`rows/mine.jsonl`)."""


class StageSettings(Section):
    """A stage of the mapping `stages`. What it names there decides the graph."""

    @property
    def models_read(self) -> tuple[str, ...]:
        """Names of the models that it reads, each once."""
        return ()

    @property
    def reward_models_named(self) -> tuple[tuple[str, str], ...]:
        """Key, and the reward model that it names there."""
        return ()

    @property
    def reward_models_read(self) -> tuple[str, ...]:
        """Names of the reward models that it asks, each once."""
        return tuple(dict.fromkeys(name for _, name in self.reward_models_named))

    @property
    def rows_read(self) -> tuple[str, ...]:
        """References to the rows that it reads, each once."""
        return ()

    @property
    def leaves_rollouts(self) -> bool:
        """Whether it leaves what a policy answered, with verdicts."""
        return False


class Reading(StageSettings):
    """A stage that reads rows."""

    data: Data
    """Rows to read: a reference, a list of them, or a mapping from each to {where, share}."""
    where: Where = Where()
    """Conditions on all of them."""

    @model_validator(mode="after")
    def _shares_of_all(self) -> Reading:
        rows_of = {name: rows for name, rows in self.data.items() if not name.endswith(ROLLOUTS)}
        without = [name for name, rows in rows_of.items() if rows.share is None]
        if without and len(without) < len(rows_of):
            raise ValueError(f"data: {', '.join(without)} has no share, and the others have one; give all of them one, or none")
        for name in self.data:
            if name.endswith(ROLLOUTS) and self.data[name] != Rows():
                raise ValueError(f"data: {name} takes neither where nor share; `accept` says which of its answers are trained on")
        return self

    @property
    def rows_read(self) -> tuple[str, ...]:
        return tuple(self.data)


class Judging(StageSettings):
    """A stage that has responses judged."""

    judge: Served | None = None
    """The reward model that judges problems of verifier `judge`; null asks the endpoint that TOUCHSTONE_JUDGE_URL names."""

    @property
    def reward_models_named(self) -> tuple[tuple[str, str], ...]:
        return (*super().reward_models_named, *((("judge.stage", self.judge.stage),) if self.judge else ()))


class Starting(StageSettings):
    """A stage that starts from a model."""

    init: str
    """`base`, or a stage that makes a model."""

    @property
    def models_read(self) -> tuple[str, ...]:
        return (self.init,)
