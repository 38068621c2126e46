"""params.yaml: what stages have in common that choose among models which they can make, by problems that no figure is of."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.config.common import GenerationSettings, Positive
from pipelines.config.stage import Judging, Reading, StageSettings


class SearchingSettings(Judging, Reading):
    """Problems that no training has seen and no benchmark holds, such as those that the limit of a stage of kind grade left ungraded: `data:
    difficulty/ungraded`."""

    budget: Positive = 8
    """Models that are made and scored, at most; those that are there already come on top."""
    problems: Annotated[int, Field(ge=4)] = 200
    """Validation problems of each domain; half of them choose, the other half compares the winner with the best of the models that were there."""
    samples: Positive = 4
    """Responses per problem; the score of a problem is the share of correct ones (pass@1)."""
    generation: GenerationSettings = GenerationSettings()
    bootstrap: Positive = 10000
    """Resamples of problems for intervals."""


class Searching(StageSettings):
    """A stage whose `search`, where it has one, reads rows and a reward model."""

    @property
    def rows_read(self) -> tuple[str, ...]:
        return self._search.rows_read if self._search else ()

    @property
    def reward_models_named(self) -> tuple[tuple[str, str], ...]:
        return tuple((f"search.{key}", name) for key, name in self._search.reward_models_named) if self._search else ()

    @property
    def _search(self) -> SearchingSettings | None:
        return getattr(self, "search")  # noqa: B009  # each kind declares its own
