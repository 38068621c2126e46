"""Kind synthesise: new problems for the topics where a policy is weak, by the pass rates of the rows it reads, curated like every other row.

Writes data/rows/<NAME>/{problems, dropped}.parquet and ledger.json, all of them or none; with nothing to do they are empty.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pipelines import chat, paths
from pipelines.config.curation import CurationSettings, SynthesiseStage
from pipelines.curation.difficulty import wilson
from pipelines.curation.run import Curated, curate
from pipelines.errors import UserError
from pipelines.sources import SOURCES
from pipelines.stages import Context, rows
from pipelines.stages.identity import folder_of, identity
from pipelines.store import read_problems, replacing_folder, write_dropped, write_json, write_problems
from pipelines.synthesis import procedural, teacher
from pipelines.synthesis.proposals import Proposals
from pipelines.synthesis.weakness import Topic, topics_of


def run(context: Context) -> dict[str, float]:
    """Propose, curate against the benchmarks and everything curated before, write.

    Raises:
        UserError: the teacher has no address or does not answer.
    """
    settings: SynthesiseStage = context.settings
    topics = topics_of(rows.read(context, settings), settings.weak_below)
    weak = [topic for topic in topics if topic.pass_rate < settings.weak_below and settings.method != "none"]
    run = identity(context, __name__, graded=map(paths.rows, settings.rows_read), known=paths.SPLITS.values(), benchmarks=paths.BENCHMARKS)
    replies = folder_of(context, run) / paths.REPLIES
    proposals = _propose(context, weak, replies) if weak and settings.budget else Proposals()
    known = [row for path in paths.SPLITS.values() for row in read_problems(context.root / path)]
    benchmarks = {path.stem: read_problems(path) for path in sorted((context.root / paths.BENCHMARKS).glob("*.parquet"))}
    given = settings.curation or CurationSettings()
    client = chat.teacher(given.endpoint, replies)
    curated = curate(proposals.problems, benchmarks, given, known=known, client=client)
    with replacing_folder(context.root / paths.ROWS / context.stage) as folder:
        write_problems(folder / paths.MADE, curated.kept)
        write_dropped(folder / paths.DROPPED, proposals.dropped + curated.dropped)
        write_json(folder / paths.LEDGER, _ledger(settings, topics, proposals, curated))
    context.journal.say(_sentence(settings, weak, proposals, curated))
    return {
        "weak_topics": len(weak),
        "proposed": sum(proposals.proposed.values()),
        "kept": len(curated.kept),
        "dropped": len(proposals.dropped) + len(curated.dropped),
    }


def _propose(context: Context, weak: list[Topic], replies: Path) -> Proposals:
    settings: SynthesiseStage = context.settings
    if settings.method == "procedural":
        return procedural.propose(weak, settings.budget, settings.generators or {}, SOURCES, context.seed, context.root)
    asked = settings.teacher
    client = chat.teacher(asked, replies)
    if not client:
        raise UserError(
            f"{context.stage}: method 'teacher' needs the address of an OpenAI-compatible endpoint in the environment variable {chat.TEACHER_URL}"
        )
    return teacher.propose(weak, settings.budget, client, asked, context.seed)


def _sentence(settings: SynthesiseStage, weak: list[Topic], proposals: Proposals, curated: Curated) -> str:
    if settings.method == "none" or not settings.budget:
        return "nothing was asked for"
    if not weak:
        return f"no topic has a pass rate below {settings.weak_below:g}, so there is nothing to add"
    notes = "; ".join(["", *proposals.notes])
    return f"{sum(proposals.proposed.values())} problems proposed for {len(weak)} weak topics, {len(curated.kept)} kept{notes}"


def _ledger(settings: SynthesiseStage, topics: list[Topic], proposals: Proposals, curated: Curated) -> dict[str, Any]:
    kept = Counter((row.domain, row.topics) for row in curated.kept)
    entries = []
    for topic in topics:
        low, high = wilson(topic.pass_rate * topic.rollouts, topic.rollouts)
        key = (topic.domain, topic.topics)
        entries.append(
            {
                "domain": topic.domain,
                "topics": list(topic.topics),
                "problems": topic.problems,
                "pass_rate": topic.pass_rate,
                "low": low,
                "high": high,
                "weak": topic.pass_rate < settings.weak_below,
                "proposed": proposals.proposed.get(key, 0),
                "kept": kept[key],
            }
        )
    proposed = {"step": settings.method, "input": len(proposals.problems) + len(proposals.dropped), "kept": len(proposals.problems)}
    proposed |= {"dropped": len(proposals.dropped), "reasons": dict(sorted(Counter(row.reason for row in proposals.dropped).items()))}
    return {"method": settings.method, "topics": entries, "notes": proposals.notes, "steps": [proposed, *curated.ledger]}
