"""Supervised training of a tiny model towards a goal, in ten steps a round."""

import json
from pathlib import Path

from pipelines.config.common import OptimiserSettings
from pipelines.config.sources import ArithmeticSource, FunctionsSource
from pipelines.config.training import ArchitectureSettings, LanguageModellingSettings
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.sft import train as loop
from pipelines.sft.examples import corpus_examples, document, document_prompts
from pipelines.sft.goal import Goal, set_aside
from pipelines.sources.arithmetic import problems as arithmetic
from pipelines.sources.functions import problems as functions

PROBLEMS = [
    *arithmetic(ArithmeticSource(kind="arithmetic", count=120), 1, "a", Path()),
    *functions(FunctionsSource(kind="functions", count=48), 1, "f", Path()),
]
TOKENIZER = train_tokenizer([document(p) for p in PROBLEMS], 400)
TINY = ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=256)


def trained(folder: Path, goal, prepare=lambda journal: None):
    """Summary and journal rows of a run that is prepared to die, or not."""
    kept, held = set_aside(PROBLEMS, goal)
    examples, _ = corpus_examples(TOKENIZER, kept, 256, "solution")
    settings = LanguageModellingSettings(epochs=10 / -(-len(examples) // 16), batch_size=16, checkpoint_every=4, goal=goal, optimiser=OptimiserSettings(warmup=0.5))
    journal = Journal(folder / "journal.jsonl", "base")
    prepare(journal)
    checkpoints = Checkpoints(folder / "checkpoints", {"a": 1})
    checkpoints.prepare()
    measured = Goal(goal, held, TOKENIZER, document_prompts(TOKENIZER, held))
    model = tiny_model(TINY, TOKENIZER, 1)
    summary, _ = loop.train(model, examples, settings, seed=1, purpose="base", journal=journal, checkpoints=checkpoints, goal=measured)
    return summary, [json.loads(line) for line in journal.path.read_text().splitlines()]
