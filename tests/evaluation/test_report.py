"""The page on a small project made by the real stages: complete, self-contained, safe, and quiet in a browser."""

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import paths
from pipelines.__main__ import write_plot
from pipelines.config.critique import CritiqueStage
from pipelines.config.curation import CurationSettings, SynthesiseStage
from pipelines.config.evaluation import ReportSettings
from pipelines.config.extrapolation import ExtrapolateStage
from pipelines.config.sampling import SampleStage
from pipelines.config.selection import SelectStage
from pipelines.config.sources import ArithmeticSource, SourcesSettings
from pipelines.config.targeting import TargetStage
from pipelines.evaluation.benchmarks import SAMPLE_SCHEMA
from pipelines.evaluation.report import Group, Inputs, render, trained_on, training
from pipelines.lineage.manifests import begin, write_manifest
from pipelines.progress import Journal
from pipelines.records import GUIDE, REPLAY, Segment, Trajectory, one_turn
from pipelines.stages import Context, critique, curation, extrapolate, report, sample, select, sources, synthesise, target
from pipelines.store import read_problems, write_json, write_problems, write_table, write_trajectories

ATTACK = "</pre><script>document.title='owned'</script><img src=http://evil.example/x.png onerror=alert(1)>\u202e\x07 & \"quoted\""
RESULTS = (
    "result",
    "coverage",
    "training",
    "problems",
    "scores",
    "differences",
    "calibration",
    "rewards",
    "extrapolation",
    "entropy",
    "boundary",
    "scaling",
    "weights",
    "outcomes",
    "samples",
)
SECTIONS = (*RESULTS, "curation", "difficulty", "selected", "critiques", "targeted", "sampled", "synthesis", "lineage")
JUDGED = {
    "accuracy": 0.731, "accuracy_low": 0.622, "accuracy_high": 0.818, "pairs": 120.0, "pairs_better_shorter": 60.0, "accuracy_better_shorter": 0.512,
    "pairs_better_longer": 0.0, "ece": 0.031, "ece_before": 0.092, "brier": 0.188, "temperature": 1.64,
}  # fmt: skip
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


def run(root: Path, name: str, settings: object, module: object) -> dict[str, float]:
    work = root / paths.WORK / name
    work.mkdir(parents=True, exist_ok=True)
    return module.run(Context(name, root, 7, settings, work, Journal(work / "journal.jsonl", name)))  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def project(evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluated checkpoints, curated rows, graded and synthesised problems, learning curves and manifests."""
    root = tmp_path_factory.mktemp("report") / "project"
    shutil.copytree(evaluated, root)
    (root / "pipelines").symlink_to(Path(report.__file__).parents[1])
    story = {"kind": "arithmetic", "count": 40, "levels": {1: 1.0, 2: 1.0}}
    given = SourcesSettings.model_validate({"train": {"stories": story | {"count": 300}}, "benchmarks": {"math": story}})
    run(root, "sources", given, sources)
    run(root, "curation", CurationSettings(splits={"base": 0.5, "sft": 0.2, "rl": 0.3}), curation)
    rows = [replace(p, pass_rate=i % 5 / 4, pass_n=4) for i, p in enumerate(read_problems(root / paths.SPLITS["rl"]))]
    graded = root / paths.ROWS / "difficulty"
    write_problems(graded / paths.GRADED, rows)
    write_json(graded / paths.LEDGER, {"reasons": {"too_hard": 1}})
    write_problems(graded / paths.MADE, [p for p in rows if 0 < (p.pass_rate or 0) < 1])
    run(root, "synthesis", SynthesiseStage(data="difficulty/graded", budget=6, generators={"stories": ArithmeticSource.model_validate(story)}), synthesise)
    said = {problem.prompt: [f"\\boxed{{{problem.answer if i % 3 else -1}}}", "no idea"] for i, problem in enumerate(rows)}
    write_json(root / "script.json", said)
    scripted = {"engine": "scripted", "script": str(root / "script.json"), "max_new_tokens": 8}
    asking = SampleStage.model_validate({"init": "sums", "data": "difficulty/graded", "samples": 2, "generation": scripted})
    write_json(root / paths.METRICS / "asked.json", run(root, "asked", asking, sample))
    write_problems(root / paths.rows("pool"), read_problems(evaluated / paths.BENCHMARKS / "sums.parquet"))
    choosing = SelectStage.model_validate({"data": ["pool", "sums/rollouts"], "score": "variance", "most": 5})
    run(root, "few", choosing, select)
    criticising = CritiqueStage.model_validate({"data": ["difficulty/graded", "asked/rollouts"]})
    run(root, "criticised", criticising, critique)
    aiming = TargetStage.model_validate({"data": "curation/sft", "weak": "difficulty/graded", "least": 1, "budget": 9})
    run(root, "aimed", aiming, target)
    for step, model in ((40, "sft"), (130, "sums")):
        shutil.copytree(root / paths.model(model), root / paths.KEPT / "sums" / f"step-{step:06d}")
    going_on = ExtrapolateStage(init="sums", start="base", target=200, method="line")
    write_json(root / paths.METRICS / "later.json", run(root, "later", going_on, extrapolate))
    write_plot(root / paths.PLOTS / "sft.csv", [{"step": i, "loss": 2 / i, "lr": 0.1} for i in range(1, 30)])
    write_plot(root / paths.PLOTS / "sums.csv", [{"step": i, "reward": i / 50, "length": 9.0 + i % 3, "kl": 0.1 * i} for i in range(1, 50)])
    write_json(root / paths.METRICS / "base.json", {"parameters": 12345})
    write_json(root / paths.METRICS / "judge.json", JUDGED)
    write_plot(root / paths.PLOTS / "judge.csv", [{"step": i, "loss": 0.7 - i / 50} for i in range(1, 10)])
    for stage, kind, inputs, outputs, *given in (
        ("sources", "sources", [], [paths.SOURCES]),
        ("curation", "curation", [paths.SOURCES], [paths.CURATION]),
        ("sft", "sft", [paths.CURATION], [paths.model("sft")]),
        ("difficulty", "grade", [paths.model("sft")], [paths.ROWS / "difficulty"]),
        ("synthesis", "synthesise", [paths.rows("difficulty/graded")], [paths.ROWS / "synthesis"]),
        ("asked", "sample", [paths.model("sums"), paths.rows("difficulty/graded")], [paths.ROWS / "asked"], asking.model_dump(mode="json")),
        ("few", "select", [paths.rows("pool")], [paths.ROWS / "few"], choosing.model_dump(mode="json")),
        ("criticised", "critique", [paths.ROLLOUTS / "asked"], [paths.ROWS / "criticised"], criticising.model_dump(mode="json")),
        ("aimed", "target", [paths.rows("difficulty/graded")], [paths.ROWS / "aimed"], aiming.model_dump(mode="json")),
        ("later", "extrapolate", [paths.KEPT / "sums", paths.BASE], [paths.model("later")], going_on.model_dump(mode="json")),
        ("judge", "reward_model", [paths.model("sft")], [paths.METRICS / "judge.json"]),
        ("sums", "rl", [paths.model("sft"), paths.ROWS / "difficulty", paths.ROWS / "synthesis"], [paths.model("sums")]),
        ("evaluation", "evaluation", [paths.BENCHMARKS, paths.model("sft"), paths.model("sums")], [paths.EVALUATION]),
    ):
        (settings,) = given or [{"note": ATTACK, "seeded": True}]
        beginning = begin(root, stage, {"seed": 7, "kind": kind, "settings": settings}, inputs=inputs, modules=["pipelines.stages.report"])
        write_manifest(beginning, outputs=outputs)
    for model in ("sft", "sums"):
        poison(root / paths.SAMPLES / model / "sums.parquet")
    return root


def poison(file: Path) -> None:
    """Every response and prompt becomes hostile markup."""
    rows = [row | {"response": ATTACK, "prompt": ATTACK, "detail": ATTACK} for row in pq.read_table(file).to_pylist()]
    write_table(file, pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    run(project, "report", ReportSettings(samples=4), report)
    return (project / paths.PAGE).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tags, attributes, and whether every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.links, self.ids, self.words, self.events = Counter[str](), list[str](), list[str](), list[str](), list[str]()
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href")]
        self.events += [name for name, _ in attrs if name.startswith("on")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_every_section_is_there_and_full(page: str) -> None:
    seen = Reader(page)
    assert seen.open == [] and tuple(seen.ids) == SECTIONS
    assert 'class="absent"' not in page
    text = " ".join(seen.words)
    for expected in (
        "Did RL help?",
        "RL (sums)",
        "Gate passed",
        "Decided by",
        "pass@4",
        "pass^4",
        "p, Holm",
        "states its confidence",
        "raw rows",
        "exact dedup",
        "weak",
        "sums",
        "12,345",
        "0.512 of 60",
        "0.031, 0.092",
        "Loss (nats per pair or response)",
        "sums gave 192 answers: correct 64, unparsable 96, wrong 32. Of 96 rows 64 are handed on; left out: no right answer 32.",
        "over quota 13",
        "saw rows: 96 of difficulty/graded",
        "level 2",
    ):
        assert expected in text, expected
    assert seen.tags["svg"] >= 10


def test_an_extrapolation_says_how_straight_it_went(project: Path, page: str) -> None:
    table = page.partition('id="extrapolation"')[2].partition("</section>")[0]
    cells = re.findall(r"<td>(.*?)</td>", table)
    assert cells[:6] == ["later", "sums", "line", "2", "130", "200"]
    told = json.loads((project / paths.METRICS / "later.json").read_text())
    assert cells[6:] == ["–", "1.000", "1.000", f"{told['length']:.3g}"], "two points lie on a line, and nothing is left out of it"


def test_headline_says_better_only_where_the_interval_does(project: Path, page: str) -> None:
    scores = json.loads((project / paths.SCORES).read_text())
    found = {d["benchmark"]: d for d in scores["differences"] if (d["model"], d["against"], d["k"]) == ("sums", "sft", 1)}
    assert all(d["low"] > 0 for d in found.values()), "the fixture has learnt"
    assert "Yes: it made the model better on sums and differences." in page
    flat = json.loads(json.dumps(scores))
    for d in flat["differences"]:
        d["verdict"] = "no difference shown"
    unsure = render(Inputs(scores=flat), 2)
    assert "No: on sums and differences no difference is shown." in unsure and ">Better<" not in unsure
    assert "by Holm for all" in unsure and "by Holm for all" not in page.partition('class="card"')[2].partition("Gate passed")[0]
    for d in flat["differences"]:  # an interval above zero that the other comparisons overrule says so
        d |= {"p": 0.012, "p_holm": 0.084} if (d["low"] > 0 and d["k"] == 1) else {}
    cards = render(Inputs(scores=flat), 2).partition("Gate passed")[0]
    assert cards.count(f"; p 0.012, but 0.084 by Holm for all {len(flat['differences'])} comparisons") >= 2


def test_stated_confidences_are_drawn_against_what_came_true(project: Path) -> None:
    scores = json.loads((project / paths.SCORES).read_text())
    figure = {"mean": 0.25, "low": 0.1, "high": 0.4}
    bins = [{"from": 0.8, "to": 0.9, "responses": 40, "problems": 12, "confidence": 0.85, "accuracy": 0.6, "low": 0.41, "high": 0.77}]
    scores["models"]["sums"]["sums"]["calibration"] = {"responses": 40, "ece": figure, "brier": figure, "bins": bins}
    drawn = render(Inputs(scores=scores), 2)
    assert "sums on sums" in drawn and "40 of 72" in drawn and "confidence 0.850: 0.600 correct, 95 % interval 0.410 to 0.770, 40 responses" in drawn


def test_a_model_has_one_colour_everywhere(project: Path) -> None:
    inputs = report.read(project)
    assert inputs.scores is not None
    rows = [{"step": float(i), "reward": i / 9} for i in range(9)]
    drawn = render(replace(inputs, curves={"abacus": rows, "sums": rows}, kinds={**inputs.kinds, "abacus": "rl"}), 2)
    swatches = re.findall(r'swatch (c-[\w]+)"></span>(\w+)', drawn)
    assert len({colour for colour, name in swatches if name == "sums"}) == 1
    assert len({(colour, name) for colour, name in swatches if name in ("base", "sft", "sums", "merged", "abacus")}) == 5


def test_what_a_stage_trained_on_is_counted_problem_by_problem(tmp_path: Path) -> None:
    """Two steps: in the first one problem has four answers, one right, one with a guide's words, one with a hint, one that does not train; in the
    second it comes back from the first, and another has an episode of two parts, which is one answer."""
    def said(problem: str, step: int, sample: int, outcome: str, **more: Any) -> Trajectory:
        return Trajectory(problem, 1 if problem == "a" else 2, sample, step, "rl", one_turn([1], [2], [-0.5], [step]), "stop", outcome=outcome, **more)

    guided = said("a", 1, 1, "wrong")
    guided.segments.insert(1, Segment(GUIDE, [5, 6]))
    first = [said("a", 1, 0, "correct"), guided, said("a", 1, 2, "wrong", trained_prompt=[1, 1]), said("a", 1, 3, "wrong", dropped="full")]
    parts = [said("b", 2, 0, "correct", part=part) for part in (0, 1)]
    write_trajectories(tmp_path / "step-000001.parquet", first)
    write_trajectories(tmp_path / "step-000002.parquet", [said("a", 1, 0, "correct", origin=REPLAY), *parts, said("b", 2, 1, "wrong")])
    groups = sorted(report.groups_of(tmp_path), key=lambda g: (g.step, g.problem_id))
    assert groups == [Group("a", 1, 4, 1, 3, 0, 2), Group("a", 2, 1, 1, 1, 1, 0), Group("b", 2, 2, 1, 2, 0, 0)]
    page = trained_on.section({"math": groups}, {"math": {"a": "curation/rl", "b": "synthesis", "c": "synthesis"}})
    assert page is not None
    assert "2 problems, 2, 5 and 5 answers (least, median, most); 1 that it was given were never answered." in page
    assert "Answers by what was read: curation/rl 71.4 %, synthesis 28.6 %." in page
    assert "a, step 1: 1 of 4 right, 2 with help" in page and "step 2: 1 of 2 up to two thirds" in page and "step 2: 1 of 2 all right" in page


@pytest.mark.parametrize(("right", "answers", "expected"), [(0, 8, 0), (2, 8, 1), (1, 3, 1), (3, 8, 2), (2, 3, 2), (6, 8, 3), (8, 8, 4), (1, 1, 4)])
def test_groups_are_classed_by_their_share_of_right_answers(right: int, answers: int, expected: int) -> None:
    assert trained_on.rate_class(right, answers) == expected


def test_figures_of_a_program_stand_beside_those_of_our_own_trainers() -> None:
    def rows(**first: float) -> list[dict[str, float]]:
        return [{"step": float(i), **{name: value + i for name, value in first.items()}} for i in range(3)]

    stages = {
        "math": rows(reward=0.1, length=4.0), "grpo": rows(reward=0.2, kl=0.1), "sft": rows(loss=2.0), "theirs": rows(loss=3.0, grad_norm=1.0),
        "odd": rows(perplexity=9.0), "silent": [],
    }  # fmt: skip
    stages["student"] = rows(reward=0.1, advantage_mean=-0.4)
    stages["sft"][2]["held_out_loss"] = 1.0
    stages["grpo"][0].pop("reward")  # a program need not tell everything at every step
    kinds = {"math": "rl", "sft": "sft", "student": "distil"} | dict.fromkeys(("grpo", "theirs", "odd", "silent"), "command")
    drawn = str(training.curves(stages, kinds, dict.fromkeys(stages, "c-a")))
    heads = ["Supervised training", "Reinforcement learning", "Distillation", "What programs measured"]
    supervised, rl, distilled, programs = (drawn.partition(f"<h3>{head}</h3>")[2].partition("<h3>")[0] for head in heads)
    assert "sft: loss" in supervised and "theirs: loss" in supervised and "odd" not in supervised
    assert "sft: loss on what is held out" in supervised and "theirs: loss on what is held out" not in supervised
    assert "Mean advantage (nats per token)" in distilled and "Mean reward" in distilled and "student" not in rl
    assert "Mean reward" in rl and rl.count("grpo") >= 2 and "kl" in rl and "grad_norm" not in rl
    assert "grad_norm" in programs and "perplexity" in programs and "2 more measures" in programs


def test_nothing_is_loaded_and_nothing_runs(page: str) -> None:
    seen = Reader(page)
    assert all(link.startswith("#") and link[1:] in SECTIONS for link in seen.links)
    assert not seen.tags.keys() & {"script", "img", "link", "iframe", "object", "embed", "form", "base", "audio", "video"}
    assert seen.events == []
    assert "url(" not in page and "@import" not in page


def test_hostile_text_is_shown_as_text(page: str) -> None:
    words = "".join(Reader(page).words)
    assert "<script>document.title='owned'</script>" in words, "the response is shown"
    assert "<script>" not in page and "\u202e" not in page and "\x07" not in page


def test_the_same_data_give_the_same_page(project: Path, page: str) -> None:
    run(project, "report", ReportSettings(samples=4), report)
    assert (project / paths.PAGE).read_text(encoding="utf-8") == page


def test_a_missing_part_leaves_a_sentence(tmp_path: Path, evaluated: Path) -> None:
    run(tmp_path, "report", ReportSettings(), report)
    empty = (tmp_path / paths.PAGE).read_text()
    assert tuple(Reader(empty).ids) == SECTIONS and empty.count('class="absent"') == len(SECTIONS)
    shutil.copytree(evaluated / paths.EVALUATION, tmp_path / paths.EVALUATION)
    run(tmp_path, "report", ReportSettings(), report)
    assert (tmp_path / paths.PAGE).read_text().count('class="absent"') == 12  # training, reward models, extrapolation, those of rows, lineage


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """(DOM after loading, lines of the console) in headless Chromium."""
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [str(CHROMIUM), "--headless", "--no-sandbox", *quiet, "--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the page was not opened in a browser")
def test_a_browser_renders_it_without_a_word_on_the_console(project: Path, page: str, tmp_path: Path) -> None:
    dom, console = browse(project / paths.PAGE, tmp_path / "profile")
    assert console == []
    assert Reader(dom).ids == list(SECTIONS) and "<title>Touchstone report</title>" in dom
    loud = tmp_path / "loud.html"
    loud.write_text(page.replace("<main>", "<main><img src='http://evil.example/x.png'>", 1))
    assert any("Content Security Policy" in line for line in browse(loud, tmp_path / "profile")[1]), "the console is heard, and the policy holds"
