"""Kind pretrain: any model goes on learning to predict plain text: documents of files, and problems with their worked solutions as documents."""

from __future__ import annotations

from typing import Any

from pipelines import methods, paths
from pipelines.config.stage import Rows
from pipelines.config.training import ALIGNED, PretrainStage
from pipelines.errors import UserError
from pipelines.sft import documents, scored
from pipelines.sft.examples import corpus_examples, document_prompts
from pipelines.sft.goal import set_aside
from pipelines.sft.objectives import NEXT_TOKENS
from pipelines.stages import Context, rows, supervised
from pipelines.stages.supervised import Read
from pipelines.store import to_problems


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME>. See `supervised.run`."""
    return supervised.run(context, __name__, _read, chat=False)


def _read(context: Context, tokenizer: Any, longest: int) -> Read:
    """Documents of problems, then those of files, by their references; written down as seen."""
    settings: PretrainStage = context.settings
    files = {name: path for name in settings.rows_read if documents.holds(path := context.root / paths.rows(name))}
    for name in files:
        if settings.data[name] != Rows():
            raise UserError(f"{context.stage}: data: {name} holds documents, which take neither where nor share")
    scores = {name: scored.read(path, settings.scored) for name, path in files.items() if settings.scored and scored.holds(path)}
    texts = {name: documents.read(path) for name, path in files.items() if name not in scores}
    tables = rows.select(context, settings, files)
    seen = {name: [document.of for document in found] for name, found in scores.items()} | {name: list(found) for name, found in texts.items()}
    rows.see(context, {name: rows.ids(table) for name, table in tables.items()} | seen)
    problems, to_solve = set_aside([problem for table in tables.values() for problem in to_problems(table)], settings.train.goal)
    examples, too_long = corpus_examples(tokenizer, problems, longest, settings.loss)
    distinct = {of: text for found in texts.values() for of, text in found.items()}
    examples += documents.examples(tokenizer, distinct, longest)
    prompts = document_prompts(tokenizer, to_solve)
    if not settings.scored:
        return Read(examples, too_long, to_solve, prompts)
    if not scores:
        raise UserError(f"{context.stage}: scored: no file of data has rows with {documents.SENTENCES} and {scored.SCORES}")
    method = methods.bind("scored.by", scored.METHODS, settings.scored.by, settings.scored.settings)
    of_files = {document.of: document for found in scores.values() for document in found}
    made, objective = method(scored.Corpus(tokenizer, list(of_files.values()), settings.scored, longest, (context.seed, context.stage)))
    if objective is not NEXT_TOKENS and examples:
        unscored = ", ".join(name for name in settings.rows_read if name not in scores)
        raise UserError(f"{context.stage}: scored.by {settings.scored.by} needs scores of all that trains, and {unscored} has none")
    if settings.control_tokens:
        prompts = [[*prompt, tokenizer.convert_tokens_to_ids(ALIGNED)] for prompt in prompts]
    return Read([*examples, *made], too_long, to_solve, prompts, objective, settings.scored.by == "awr")
