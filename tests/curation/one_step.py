"""One step of curation by itself, through the real engine."""

from collections.abc import Iterable
from typing import Any

from pipelines.chat import ChatClient
from pipelines.config.curation import CurationSettings
from pipelines.curation.run import curate
from pipelines.records import Dropped, Problem


def alone(
    step: str,
    problems: Iterable[Problem],
    benchmarks: dict[str, list[Problem]] | None = None,
    *,
    known: Iterable[Problem] = (),
    client: ChatClient | None = None,
    **settings: Any,
) -> tuple[list[Problem], list[Dropped]]:
    """(kept, dropped) in the order of curation."""
    curated = curate(problems, benchmarks or {}, CurationSettings.model_validate({"steps": [step], **settings}), known=known, client=client)
    return curated.kept, curated.dropped
