"""Kind command: an outside program makes the model, from the model that `init` names and the rows that `data` names.

Where a run is interrupted, what the program has put into resume/ stays, with the figures and rollouts that it had written; the next run starts the
program again with them. Once it has ended well it is not started again, though the stage is killed before its outputs are recorded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import paths, seeding
from pipelines.command import folder as contract
from pipelines.command import scorer
from pipelines.command.figures import METRICS, Figures
from pipelines.command.program import Program, end_earlier, variables, words
from pipelines.command.rollouts import ROLLOUTS, Reader
from pipelines.command.weights import check
from pipelines.config.command import CommandStage
from pipelines.errors import UserError
from pipelines.interrupted import Interrupted
from pipelines.lineage.code import environment_identity
from pipelines.models.loading import load_tokenizer, write_vocabulary
from pipelines.records import Problem
from pipelines.stages import Context, rows
from pipelines.stages.identity import identity
from pipelines.store import discard, replacing_folder, sync
from pipelines.verifiers import VerifierPool, require_sandbox_for

MARK = "program.mark"


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME> and, where it leaves them, data/rollouts/<NAME>.

    Raises:
        UserError: the program failed, or left something that is missing, malformed or of another kind than it was told to.
    """
    settings: CommandStage = context.settings
    end_earlier(context.work / MARK)
    problems = {problem.problem_id: problem for problem in rows.read(context, settings)}
    require_sandbox_for(problems.values())
    if settings.environment:
        context.installed.update(environment_identity(context.root / settings.environment))
    work = _Work(context)
    record = Interrupted(context.resume, _identity(context), context.on_change, context.stage)
    if note := record.meet(work.step(), work.forget):
        context.journal.say(note)
    try:
        with VerifierPool() as pool:
            figures = _figures(context, work)
            if not work.made.exists():
                figures = _program(context, work, problems, pool)
            summary = _left(context, work, problems, pool)
    except UserError as error:
        raise UserError(f"{context.stage}: {error}") from None
    context.accepted.extend(record.accepted())
    last = (context.journal.rows() or [{"step": 0}])[-1]
    if figures.names and settings.plot not in figures.names:
        context.notice(f"its plot is of '{settings.plot}', which the program has not measured; it has {', '.join(sorted(figures.names))}")
    return {name: value for name, value in last.items() if name != "step"} | summary | {"problems": len(problems), "steps": last["step"]}


class _Work:
    """Where things lie. program: the folder that the program starts in. resume: what it continues from. made: what it left when it had ended
    well. parts: figures and rollouts of runs that were interrupted."""

    def __init__(self, context: Context) -> None:
        self.journal = context.journal
        self.program = context.work / "program"
        self.out = self.program / contract.OUT
        self.resume, self.made, self._parts = (context.resume / name for name in ("program", "made", "parts"))
        context.resume.mkdir(parents=True, exist_ok=True)

    def step(self) -> int | None:
        """Where interrupted work stands; None where there is none."""
        there = self.made.exists() or self._parts.exists() or (self.resume.is_dir() and any(self.resume.iterdir()))
        return max((row["step"] for row in self.journal.rows()), default=0) if there else None

    def forget(self) -> None:
        for folder in (self.made, self._parts, self.resume, self.program):
            discard(folder)

    def set_aside(self) -> None:
        """Keep the figures and rollouts of a run that was interrupted."""
        left = [self.out / name for name in (METRICS, ROLLOUTS) if (self.out / name).is_file()]
        if left and self.resume.is_dir() and any(self.resume.iterdir()):
            part = self._parts / f"{len(list(self._parts.glob('[0-9]*'))) + 1:05d}"
            with replacing_folder(part) as folder:  # a kill may leave a part twice: the second begins where the first did, and so replaces it
                for file in left:
                    os.link(file, folder / file.name)

    def parts(self, name: str) -> list[Path]:
        """The files of this name that interrupted runs have left, and that of the run which ended well."""
        files = [folder / name for folder in (*sorted(self._parts.glob("[0-9]*")), self.made)]
        return [file for file in files if file.is_file()]

    def keep(self) -> None:
        """The program has ended well: what it left is not made again."""
        sync(self.out)
        self.out.rename(self.made)
        sync(self.made.parent)


def _identity(context: Context) -> dict[str, Any]:
    settings: CommandStage = context.settings
    read = {"problems": map(paths.rows, settings.rows_read), "program": map(Path, settings.code)}
    return identity(context, __name__, init=paths.model(settings.init), **read) | {"environment": context.installed}


def _figures(context: Context, work: _Work) -> Figures:
    """The journal as earlier runs of the program have left it; what is malformed there ends it."""
    context.journal.cut(0)
    work.set_aside()
    figures = Figures(work.made / METRICS, context.journal, None)
    for file in work.parts(METRICS):
        figures = Figures(file, context.journal, None)
        try:
            figures.look(whole=file.parent == work.made)
        except UserError as error:
            context.journal.say(f"of an interrupted run: {error}; the rest of it is left aside")
    if work.made.exists():
        context.journal.say("the program had ended well: what it left is taken")
    elif stands := context.journal.rows():
        context.journal.say(f"the program had come to step {stands[-1]['step']}; it goes on from what it has kept")
    return figures


def _program(context: Context, work: _Work, problems: Mapping[str, Problem], pool: VerifierPool) -> Figures:
    """Run the program to its good end.

    Raises:
        UserError: it failed, or its figures are malformed.
    """
    settings: CommandStage = context.settings
    model = context.root / paths.model(settings.init)
    table = contract.row_table(list(problems.values()), load_tokenizer(model, chat=False), settings.prompt)
    environment = variables(context.root / settings.environment if settings.environment else None, settings.variables, work.program, os.environ)
    secrets = [os.environ[name] for name in settings.variables]
    figures = Figures(work.out / METRICS, context.journal, settings.plot)
    program = Program(
        words(settings.command, settings.code, context.root), work.program, environment, context.work / "program.log", context.work / MARK,
        context.journal.say, secrets,
    )  # fmt: skip
    with scorer.serving(problems, pool) as address:
        told = {"stage": context.stage, "seed": seeding.key(context.seed, "command", context.stage) % 2**31, "device": context.device}
        contract.make(work.program, model, work.resume, table, {**told, "settings": settings.settings, "scorer": address})
        code = program.run(figures.look, settings.timeout)
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "; if that was for lack of memory, have it use less" if code == -9 else ""
        said = f", saying: {program.last}" if program.last else ""
        raise UserError(f"{' '.join(settings.command)} {how}{said} (all it said is in {program.log.relative_to(context.root)}){hint}")
    figures.look(whole=True)
    work.keep()
    return figures


def _left(context: Context, work: _Work, problems: Mapping[str, Problem], pool: VerifierPool) -> dict[str, float]:
    """Check what the program has left and make it the stage's outputs.

    Raises:
        UserError: something is missing or wrong; what was left is forgotten, so that the program is asked again.
    """
    settings: CommandStage = context.settings
    try:
        model = check(work.made / "model", context.root / paths.model(settings.init), settings.allow)
        summary = {"parameters": float(model.parameters)}
        if settings.rollouts:
            if not (work.made / ROLLOUTS).is_file():
                raise UserError(f"out/{ROLLOUTS} is missing, and `rollouts` says that the program leaves it")
            reader = Reader(problems, model.tokenizer, settings.prompt, pool, context.stage)
            with replacing_folder(context.root / paths.ROLLOUTS / context.stage) as folder:
                steps = max((row["step"] for row in context.journal.rows()), default=0)
                count = reader.write(work.parts(ROLLOUTS), folder, lambda step: context.journal.show(step, max(step, steps), "rollouts judged"))
                if not count:
                    raise UserError(f"out/{ROLLOUTS} is empty")
                write_vocabulary(folder, model.tokenizer)
            summary["rollouts"] = float(count)
        elif (work.made / ROLLOUTS).is_file():
            context.journal.say(f"out/{ROLLOUTS} is left aside: `rollouts` is false")
        model.write(context.root / paths.model(context.stage))
    except UserError:
        discard(work.made)
        raise
    discard(work.program)
    return summary
