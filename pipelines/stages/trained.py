"""What a stage that trains leaves: its model as a plain one, whatever it trained as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipelines import paths
from pipelines.models.adapters import plain_weights
from pipelines.models.loading import load_policy, save_policy
from pipelines.stages import Context


def save(
    context: Context, init: Path, policy: Any, tokenizer: Any, best: Mapping[str, Any] | None = None, keep: Literal["best", "last"] = "last"
) -> None:
    """Write data/models/<NAME>: the policy's last weights, or the best ones where those are to be kept; the others go to the working folder.

    init: where the policy came from. Of several processes all must call, and the first writes.
    """
    last = plain_weights(policy)
    if not context.first:
        return
    plain, _ = load_policy(init)
    for name, state in {"last": last, "best": best}.items():
        if state is not None:
            plain.load_state_dict(state)
            save_policy(context.root / paths.model(context.stage) if keep == name else context.work / name, plain, tokenizer)
