"""Kind pretrain: any model goes on learning to predict plain text: documents of files, and problems with their worked solutions as documents."""

from __future__ import annotations

from typing import Any

from pipelines import paths
from pipelines.config.stage import Rows
from pipelines.config.training import PretrainStage
from pipelines.errors import UserError
from pipelines.sft import documents
from pipelines.sft.examples import corpus_examples, document_prompts
from pipelines.sft.goal import set_aside
from pipelines.stages import Context, rows, supervised
from pipelines.stages.supervised import Read
from pipelines.store import to_problems


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME>. See `supervised.run`."""
    return supervised.run(context, __name__, _read, chat=False)


def _read(context: Context, tokenizer: Any, longest: int) -> Read:
    """Documents of problems, then those of files, by their references; written down as seen."""
    settings: PretrainStage = context.settings
    texts = {name: documents.read(path) for name in settings.rows_read if documents.holds(path := context.root / paths.rows(name))}
    for name in texts:
        if settings.data[name] != Rows():
            raise UserError(f"{context.stage}: data: {name} holds documents, which take neither where nor share")
    tables = rows.select(context, settings, texts)
    rows.see(context, {name: rows.ids(table) for name, table in tables.items()} | {name: list(found) for name, found in texts.items()})
    problems, to_solve = set_aside([problem for table in tables.values() for problem in to_problems(table)], settings.train.goal)
    examples, too_long = corpus_examples(tokenizer, problems, longest, settings.loss)
    distinct = {of: text for found in texts.values() for of, text in found.items()}
    examples += documents.examples(tokenizer, distinct, longest)
    return Read(examples, too_long, to_solve, document_prompts(tokenizer, to_solve))
