"""What stages that train have in common: checkpoints that an interrupted run goes on from, and a model that is left as a plain one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipelines import paths
from pipelines.models import ranks
from pipelines.models.adapters import plain_weights
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.kept import Kept
from pipelines.models.loading import load_policy, save_policy
from pipelines.stages import Context
from pipelines.stages.identity import identity


def save(
    context: Context, init: Path, policy: Any, tokenizer: Any, best: Mapping[str, Any] | None = None, keep: Literal["best", "last"] = "last",
    *, chat: bool = True,
) -> None:  # fmt: skip
    """Write data/models/<NAME>: the policy's last weights, or the best ones where those are to be kept; the others go to the working folder.

    init: where the policy came from. chat: its tokenizer must have a chat template. Of several processes all must call, and the first writes.
    """
    last = plain_weights(policy)
    if not context.first:
        return
    plain, _ = load_policy(init, chat=chat)
    for name, state in {"last": last, "best": best}.items():
        if state is not None:
            plain.load_state_dict(state)
            save_policy(context.root / paths.model(context.stage) if keep == name else context.work / name, plain, tokenizer)


def opened(context: Context, module: str, part: str = "", **read: Any) -> Checkpoints:
    """The stage's checkpoints, or those of a `part` of it that is trained by itself, ready for what it is made from now. module: the stage's own, by
    its dotted name. read: as `identity` takes it. Of several processes all must call.

    Raises:
        UserError: an interrupted run was made otherwise, and nobody said what becomes of it.
    """
    checkpoints = Checkpoints(context.resume / part, identity(context, module, **read), context.on_change, writes=context.first, stage=context.stage)
    if context.first and (note := checkpoints.prepare()):
        context.journal.say(note)
    ranks.wait()
    return checkpoints


def along(context: Context, init: Path) -> Kept | None:
    """Keeps the weights of a training on its way, where the stage's settings ask for it. init: where the policy comes from."""
    keep = context.settings.keep
    return Kept(context.resume / paths.KEPT.name, keep, init, context.first) if keep else None


def hand_over(context: Context, kept: Kept | None) -> dict[str, float]:
    """Write data/kept/<NAME>. Returns how many steps it has, for the stage's figures."""
    return {"kept": float(kept.hand_over(context.root / paths.KEPT / context.stage))} if kept and context.first else {}
