"""What a synthesis method hands back: new problems, attempts that failed, and remarks for the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.records import Dropped, Problem


@dataclass
class Proposals:
    """`problems` still have to be curated; each names its `parents`. `proposed`: how many were asked for, by (domain, topics)."""

    problems: list[Problem] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    proposed: dict[tuple[str, tuple[str, ...]], int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
