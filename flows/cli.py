"""The `touchstone` command. Each subcommand is thin, and imports what it needs when it is called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from flows import command, tools
from pipelines import paths
from pipelines.stages import ON_CHANGE

Command = Callable[[argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    return command.run(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="touchstone", description="From a pile of problems to a better reasoning model, with proof of how.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    sub = add("run", run, "run every stage that is not current, then name the report")
    sub.add_argument("--until", metavar="STAGE", help="stop after this stage; only what it needs runs; a kind means all of that kind")
    sub.add_argument("--force", metavar="STAGE", action="append", default=[], help="run this stage though it is current; may be given again")
    sub.add_argument("--at-once", metavar="N", type=int, help="run up to N stages side by side; default: TOUCHSTONE_AT_ONCE, else 1")
    changed = sub.add_mutually_exclusive_group()
    changed.add_argument("--accept-changes", dest="on_change", action="store_const", const="accept", help=ON_CHANGE["accept"])
    changed.add_argument("--discard", dest="on_change", action="store_const", const="discard", help=ON_CHANGE["discard"])
    sub = add("check", check, "check all of params.yaml and say what a run would do, stage by stage; nothing runs")
    sub.add_argument("--mermaid", action="store_true", help="only draw the graph, in Mermaid's words")
    add("up", up, "start a lasting Prefect server and the MLflow UI on loopback")
    add("down", down, "stop what `up` started")
    add("serve", serve, "serve the deployments of prefect.yaml until Ctrl-C, so that the Prefect UI or a schedule can start runs")
    sub = add("configure", configure, "merge an overlay into params.yaml, keeping its comments; a null deletes a key")
    sub.add_argument("overlay", type=Path, help="YAML file with the keys to change")
    sub = add("migrate", migrate, "rewrite a params file, or an overlay, of an earlier form; comments stay")
    sub.add_argument("file", type=Path, nargs="?", help="default: params.yaml of the project")
    sub = add("sweep", sweep, "run every combination of edits of params.yaml as an experiment of DVC, and compare what comes out")
    sub.add_argument("edits", nargs="+", metavar="KEY=VALUE,VALUE", help="a key of params.yaml and its values, such as stages.math.recipe=grpo,dapo")
    sub.add_argument("--name", default="sweep", help="experiments are called NAME-DIGEST; default: sweep")
    sub.add_argument("--model", help="the model that is compared; default: the candidate of evaluation.gate")
    early = "stop a point once the pass rate of this RL stage cannot come up to the best point's any more, as its learning curve predicts"
    sub.add_argument("--stop-early", metavar="STAGE", help=early)
    sub = add("lineage", lineage, "the chain from a model or file back to its rows and source files")
    sub.add_argument("path", type=Path, help="a model folder, or any file or folder under data/")
    sub.add_argument("--verify", action="store_true", help="recompute every digest; exit code 1 names the first link that does not hold")
    tools.register(add)
    return parser


def run(options: argparse.Namespace) -> int:
    from pipelines.lineage import manifests
    from tasks import locking, planning, settings, side_by_side

    project = settings.root()
    at_once = side_by_side.at_once(options.at_once)
    if options.on_change:
        os.environ["TOUCHSTONE_ON_CHANGE"] = options.on_change  # the stages are children
    with locking.single_run(project):
        plan = planning.make(project, options.until, options.force)
        first = planning.first_to_run(project, plan)
        if first is None:
            print("everything is current")
        else:
            command.start_servers(plan.stages[first])  # while Prefect is imported here
            from flows.post_training import post_training

            command.with_server(lambda: post_training(until=options.until, force=options.force, at_once=at_once))
            for stage, statement in manifests.read_manifests(project).items():
                for text in manifests.notices(statement) if stage in plan.stages else ():
                    print(f"{stage}: look at this: {text}")
    if (project / paths.PAGE).exists() and "report" in plan.stages:
        print(f"report: {project / paths.PAGE}")
    return 0


def check(options: argparse.Namespace) -> int:
    from pipelines import graph
    from tasks import describing, settings

    if options.mermaid:
        print(describing.mermaid(graph.graph(settings.params(settings.root()))))
        return 0
    for line in describing.plan(settings.root()):
        print(line)
    return 0


def up(options: argparse.Namespace) -> int:
    from tasks import services, settings

    for service in services.up(settings.root()):
        print(f"{service.name}: {service.url}")
    return 0


def down(options: argparse.Namespace) -> int:
    from tasks import services, settings

    stopped = services.down(settings.root())
    print(f"stopped {' and '.join(stopped)}" if stopped else "nothing was running")
    return 0


def serve(options: argparse.Namespace) -> int:
    from flows.deployments import serve_all

    serve_all()
    return 0


def configure(options: argparse.Namespace) -> int:
    from tasks import overlays, settings

    project = settings.root()
    for key, before, after in overlays.apply(project / paths.PARAMS, options.overlay):
        print(f"{key}: {before} -> {after}")
    return 0


def migrate(options: argparse.Namespace) -> int:
    from tasks import migration, settings

    file = options.file or settings.root() / paths.PARAMS
    told = migration.migrate(file)
    print("\n".join(told) if told else f"{file}: it has the form of this version already")
    left = [name for name in ("dvc.lock", "data/difficulty", "data/synthesis", "data/manifests/rl") if (file.parent / name).exists()]
    if left:
        print(f"nothing reads {', '.join(left)} any more; delete what you do not want to keep")
    return 0


def sweep(options: argparse.Namespace) -> int:
    from flows.tools.evaluation import compared
    from tasks import experiments, settings

    project = settings.root()
    model = options.model or settings.params(project).evaluation.gate.candidate
    found, stopped = {}, list[str]()
    for ran in experiments.sweep(project, options.name, experiments.grid(options.edits), options.stop_early):
        said = ", ".join(f"{key} {value}" for key, value in ran.point.items())
        print(f"{ran.experiment}: {said}{' (stopped)' if ran.stopped else ''}", flush=True)
        if ran.stopped:
            stopped.append(f"{said}: {ran.stopped.told(options.stop_early)}")
        else:
            found[said] = experiments.samples(project, ran.experiment, model)
    print("\n".join([*compared(found), *stopped]))
    if stopped:
        print("what was stopped goes on from its checkpoint when the same sweep runs without --stop-early")
    return 0


def lineage(options: argparse.Namespace) -> int:
    from pipelines.lineage.walk import Lineage
    from tasks import settings

    found = Lineage(settings.root())
    stages = found.find(options.path)
    print("\n".join(found.tree(stages)))
    if not options.verify:
        return 0
    broken, checked, notes = found.verify(stages)
    print("\n".join(notes), end="\n" if notes else "")
    if broken:
        print(f"broken: {broken}", file=sys.stderr)
        return 1
    print(f"the chain holds: {checked} links checked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
