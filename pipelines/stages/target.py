"""Kind target: rows for the skills that a model lacks, by the pass rates of other rows.

Writes data/rows/<NAME>/{problems, dropped}.parquet and ledger.json, with the profile of skills, all of them or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from pipelines import chat, paths, seeding
from pipelines.config.targeting import SkillSettings, TargetStage
from pipelines.curation.skills import Ask, Skills, difficult, lacks, listed, needs, picked, profile
from pipelines.errors import UserError
from pipelines.records import POLICY, Outcome, Problem
from pipelines.stages import Context, rows
from pipelines.stages.identity import folder_of, identity
from pipelines.store import read_trajectories, replacing_folder, to_problems, write_dropped, write_json, write_problems
from pipelines.synthesis.weakness import allocate


def run(context: Context) -> dict[str, float]:
    """Count what is missing, and choose.

    Raises:
        UserError: no row is difficult, no skill counts, or no row needs one; or the teacher has no address or does not answer.
    """
    settings: TargetStage = context.settings
    tables = rows.select(context, settings) | {settings.weak: rows.table_of(context.root, settings.weak)}
    rows.see(context, {name: rows.ids(table) for name, table in tables.items()})
    tried = to_problems(tables[settings.weak])
    pool = [problem for name in settings.data for problem in to_problems(tables[name])]
    hard = difficult(tried, settings.below, settings.hardest)
    if not hard:
        raise UserError(f"{context.stage}: none of the {len(tried)} rows of {settings.weak} has a pass rate below {settings.below:g}")
    needed, missing = _skills(context, pool, tried, hard)
    found = profile(tried, hard, needed, missing, settings.least)
    lacking = [skill for skill in found if skill.missing]
    counts = [skill.missing for skill in lacking]
    quotas = allocate(settings.budget, counts) if settings.budget else [settings.per_missing * count for count in counts]
    by_skill = dict(zip((skill.name for skill in lacking), quotas, strict=True))
    taken, kept, dropped = picked(pool, needed, by_skill, (context.seed, context.stage, "target"))
    if not kept:
        told = ", ".join(by_skill) or f"none that {settings.least} rows of {settings.weak} need"
        raise UserError(f"{context.stage}: not one of {len(pool)} rows needs a missing skill ({told})")
    reasons = dict(sorted(Counter(row.reason for row in dropped).items()))
    counted = {"input": len(pool), "kept": len(kept), "dropped": len(dropped)}
    skills = [asdict(skill) | {"wanted": by_skill.get(skill.name, 0), "taken": taken.get(skill.name, 0)} for skill in found]
    with replacing_folder(context.root / paths.ROWS / context.stage) as folder:
        write_problems(folder / paths.MADE, kept)
        write_dropped(folder / paths.DROPPED, dropped)
        write_json(folder / paths.LEDGER, {"steps": [{"step": "target", **counted, "reasons": reasons}], "skills": skills})
    told = ", ".join(f"{skill.name} {skill.missing}" for skill in lacking[:5])
    context.journal.say(f"of {len(hard)} difficult rows most often missing: {told}; {len(kept)} rows for {len(lacking)} skills")
    figures = {"difficult": len(hard), "missing_skills": len(lacking), "wanted": sum(quotas)}
    return {name: float(value) for name, value in (counted | figures).items()}


def _skills(context: Context, pool: Sequence[Problem], tried: Sequence[Problem], hard: Sequence[Problem]) -> tuple[Skills, Skills]:
    """By problem id (skills that it needs, skills that the model lacks where it is difficult)."""
    settings: TargetStage = context.settings
    known = {problem.problem_id: problem for problem in (*pool, *tried)}
    if settings.skills is None:
        topics = {name: problem.topics for name, problem in known.items()}
        return topics, topics
    ask, asked = _teacher(context, settings.skills), list(known.values())
    ranked = sorted(asked, key=lambda problem: seeding.key(context.seed, context.stage, "shown", problem.problem_id))
    skills = settings.skills.known or listed(ranked[: settings.skills.shown], ask, settings.skills.most)
    if not skills:
        raise UserError(f"{context.stage}: the teacher listed no skill; name them under skills.known")
    needed = needs(asked, skills, ask)
    return needed, needed | lacks(_wrong(context, hard), skills, ask) if settings.answers else needed


def _wrong(context: Context, hard: Sequence[Problem]) -> list[tuple[Problem, str]]:
    """Difficult rows with a wrong answer of the model's to each, by hash."""
    settings: TargetStage = context.settings
    assert settings.answers is not None
    texts: dict[str, set[str]] = {problem.problem_id: set() for problem in hard}
    for path in sorted((context.root / paths.rows(settings.answers)).glob("*.parquet")):
        for each in read_trajectories(path):
            wrong = each.outcome not in (Outcome.CORRECT, Outcome.INFRASTRUCTURE) and each.origin == POLICY and not each.part
            if wrong and each.problem_id in texts:
                texts[each.problem_id].add(each.response)
    key = (context.seed, context.stage, "answer")
    return [(problem, min(found, key=lambda text: seeding.key(*key, text))) for problem in hard if (found := texts[problem.problem_id])]


def _teacher(context: Context, settings: SkillSettings) -> Ask:
    """
    Raises:
        UserError: it has no address.
    """
    stage: TargetStage = context.settings
    client = chat.teacher(settings, folder_of(context, identity(context, __name__, data=map(paths.rows, stage.rows_read))) / paths.REPLIES)
    if not client:
        raise UserError(f"{context.stage}: skills need the address of an OpenAI-compatible endpoint in the environment variable {chat.TEACHER_URL}")

    def ask(conversations: Sequence[chat.Messages]) -> Sequence[chat.Reply]:
        replies = client.complete_all(conversations, temperature=settings.temperature, max_tokens=settings.max_tokens)
        if replies and all(reply.text is None for reply in replies):
            raise UserError(f"{context.stage}: the teacher answered none of {len(replies)} requests; the first failed with: {replies[0].error}")
        return replies

    return ask
