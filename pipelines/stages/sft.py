"""sft: the cold start, on the `sft` split in the chat template."""

from __future__ import annotations

from pipelines import paths
from pipelines.config.training import SftSettings
from pipelines.errors import UserError
from pipelines.lineage.code import code_identity
from pipelines.lineage.digests import tree_sha256
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.loading import load_policy, save_policy
from pipelines.sft.examples import chat_examples
from pipelines.sft.train import train
from pipelines.stages import Context
from pipelines.store import read_problems


def run(context: Context) -> dict[str, float]:
    """Write data/models/sft."""
    settings: SftSettings = context.settings
    split = context.root / paths.SPLITS["sft"]
    model, tokenizer = load_policy(context.root / paths.BASE, context.device)
    longest = min(settings.train.max_tokens, model.config.max_position_embeddings)
    examples, left_out = chat_examples(tokenizer, read_problems(split), longest, settings.prompt)
    if not examples:
        raise UserError(f"sft: no example to train on: the `sft` split has {left_out} worked solutions, all longer than {longest} tokens")
    if left_out:
        context.journal.say(f"{left_out} examples longer than {longest} tokens are left out")
    checkpoints = Checkpoints(
        context.work,
        {
            "settings": settings.model_dump(mode="json"),
            "seed": context.seed,
            "code": code_identity(__name__),
            "data": tree_sha256(split),
            "base": tree_sha256(context.root / paths.BASE),
        },
        context.on_change,
    )
    if note := checkpoints.prepare():
        context.journal.say(note)
    summary = train(
        model, examples, settings.train, seed=context.seed, purpose="sft", journal=context.journal, checkpoints=checkpoints
    )  # fmt: skip
    save_policy(context.root / paths.SFT, model, tokenizer)
    context.accepted.extend(checkpoints.accepted())
    checkpoints.clear()
    return summary | {"too_long": float(left_out)}
