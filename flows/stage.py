"""One stage as a command, `python -m flows.stage NAME`: what data/dvc.yaml runs. It names the models of the evaluation, too."""

from __future__ import annotations

import sys

from flows import command
from pipelines import graph
from pipelines.errors import UserError
from tasks import settings


def main() -> int:
    """Run the flow of a stage, once params hold: no server is started for what cannot run."""
    if len(sys.argv) < 2:
        raise UserError("usage: python -m flows.stage NAME, a stage of params.yaml")
    name, *models = sys.argv[1:]
    stages = graph.graph(settings.params(settings.root()))
    if name not in stages:
        raise UserError(f"there is no stage '{name}'; there are {', '.join(stages)}")
    if models and models != [*getattr(stages[name].settings, "models", ())]:
        raise UserError(f"{name}: its models are not {', '.join(models)}; leave them out")
    command.start_servers(stages[name])
    from flows.kinds import FLOWS

    return command.with_server(lambda: FLOWS[stages[name].kind](name))


if __name__ == "__main__":
    sys.exit(command.run(main))
