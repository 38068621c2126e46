"""Stage `merging`: the RL experts become one model."""

from __future__ import annotations

from pipelines import paths
from pipelines.config.checking import check
from pipelines.errors import UserError
from pipelines.merging import MergeConfig, merge
from pipelines.stages import Context


def run(context: Context) -> dict[str, float]:
    """Merge the RL stages of params into data/models/merged. Returns what each expert changed, in shares of all parameters."""
    settings, root = context.settings, context.root
    names: tuple[str, ...] = settings.models or ()
    if not names:
        raise UserError("merging.models: there is no RL stage to merge; name one in rl.stages")
    given = {
        "base": root / paths.model(settings.base),
        "models": tuple(root / paths.model(name) for name in names),
        "method": settings.method,
        "settings": settings.settings,
        "dtype": settings.dtype,
    }
    summary = merge(check(MergeConfig, given, "params.yaml: merging"), root / paths.MERGED)
    context.journal.say(f"{settings.method} of {', '.join(names)}: {summary.tensors} tensors, {summary.parameters:,} parameters")
    metrics: dict[str, float] = {"experts": len(names), "tensors": summary.tensors, "parameters": summary.parameters}
    for name, changed, alone in zip(names, summary.changed, summary.alone, strict=True):
        metrics |= {f"{name}_changed_share": changed, f"{name}_alone_share": alone}
    return metrics
