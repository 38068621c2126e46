"""`touchstone query` over files as the stages write them."""

import contextlib
import json
from dataclasses import replace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import main
from pipelines import paths, views
from pipelines.errors import UserError
from pipelines.records import Dropped, Problem, Trajectory, one_turn
from pipelines.store import write_dropped, write_json, write_problems, write_table, write_trajectories


def problem(name: str, domain: str = "math") -> Problem:
    return Problem(name, domain, f"What is {name}?", "1", "integer", "math", source="s", topics=("a",))


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "it's here"  # a path that must be quoted
    rows = [problem("one"), problem("two", "code"), problem("three")]
    write_problems(root / paths.PROBLEMS, rows)
    write_problems(root / paths.BENCHMARKS / "math.parquet", rows[:1])
    write_problems(root / paths.BENCHMARKS / "code.parquet", rows[1:2])
    for split, part in (("base", rows[:1]), ("rl", rows[1:2])):
        write_problems(root / paths.SPLITS[split], part)
    write_dropped(root / paths.CURATION / paths.DROPPED, [Dropped(rows[2], "exact_dedup", "duplicate", "same as one")])
    steps = [{"step": "exact_dedup", "input": 3, "kept": 2, "dropped": 1, "reasons": {"duplicate": 1}, "sources": {"s": 2}}]
    write_json(root / paths.CURATION / paths.LEDGER, {"steps": steps})
    write_dropped(root / paths.ROWS / "difficulty" / paths.DROPPED, [Dropped(rows[1], "grade", "too_easy")])
    for reference, part in (("difficulty/graded", rows[1:2]), ("difficulty", []), ("synthesis", rows[2:])):
        write_problems(root / paths.rows(reference), part)
    write_table(root / paths.seen("math"), pa.table({"problem_id": ["one", "three"], "data": ["curation/rl", "synthesis"]}))
    write_json(root / paths.ROWS / "difficulty" / paths.LEDGER, {"input": 1, "graded": 1, "selected": 0, "reasons": {"too_easy": 1}})
    for stage, reward in (("math", 1.0), ("code", 0.0)):
        made = [Trajectory("one", 0, n, 1, stage, one_turn([1], [2], [-0.1], [0]), "stop", outcome="correct", reward=reward) for n in range(3)]
        made.append(replace(made[0], origin="replay", dropped="stale"))
        write_trajectories(root / paths.ROLLOUTS / stage / "step-000001.parquet", made)
    (root / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv("TOUCHSTONE_ROOT", str(root))
    return root


def rows_of(root, query):
    return views.run(views.connect(root), query).to_pylist()


def test_rollouts_of_before_segments_stand_beside_new_ones(project):
    path = project / paths.ROLLOUTS / "math" / "step-000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["segments", "trained_prompt_ids", "part"]), path)
    assert rows_of(project, "select stage, count(*) n, count(segments) s from rollouts group by 1 order by 1") == [
        {"stage": "code", "n": 4, "s": 4},
        {"stage": "math", "n": 4, "s": 0},
    ]


def test_views_say_where_a_row_comes_from(project):
    assert rows_of(project, "select split, problem_id from splits order by 1") == [
        {"split": "base", "problem_id": "one"},
        {"split": "rl", "problem_id": "two"},
    ]
    assert rows_of(project, "select benchmark, count(*) n from benchmarks group by 1 order by 1") == [
        {"benchmark": "code", "n": 1},
        {"benchmark": "math", "n": 1},
    ]
    assert rows_of(project, "select stage, avg(reward) r from rollouts group by 1 order by 1") == [
        {"stage": "code", "r": 0.0},
        {"stage": "math", "r": 1.0},
    ]
    fates = "select origin, dropped, count(*) n from rollouts group by all order by 1"
    assert rows_of(project, fates) == [{"origin": "policy", "dropped": "", "n": 6}, {"origin": "replay", "dropped": "stale", "n": 2}]
    dropped = rows_of(project, "select stage, step, reason, problem_id from dropped order by 1")
    assert dropped == [
        {"stage": "curation", "step": "exact_dedup", "reason": "duplicate", "problem_id": "three"},
        {"stage": "difficulty", "step": "grade", "reason": "too_easy", "problem_id": "two"},
    ]


def test_rows_that_stages_make_and_have_seen_stand_by_stage(project):
    assert rows_of(project, "select stage, problem_id from graded") == [{"stage": "difficulty", "problem_id": "two"}]
    assert rows_of(project, "select stage, problem_id from selected") == []
    assert rows_of(project, "select stage, problem_id from synthesised") == [{"stage": "synthesis", "problem_id": "three"}]
    assert rows_of(project, "select stage, data, problem_id from seen order by data") == [
        {"stage": "math", "data": "curation/rl", "problem_id": "one"},
        {"stage": "math", "data": "synthesis", "problem_id": "three"},
    ]


def test_the_ledger_adds_up_to_the_dropped_rows(project):
    ledger = rows_of(project, "select stage, step, input, kept, dropped from ledger order by stage")
    assert ledger == [
        {"stage": "curation", "step": "exact_dedup", "input": 3, "kept": 2, "dropped": 1},
        {"stage": "difficulty", "step": "grade", "input": 1, "kept": 0, "dropped": 1},
    ]
    joined = "select r.rows = (select count(*) from dropped d where d.stage = r.stage and d.reason = r.reason) ok from reasons r"
    assert rows_of(project, joined) == [{"ok": True}] * 2


def test_only_what_is_there_has_a_view(project):
    assert views.tables(views.connect(project)) == [
        "benchmarks", "dropped", "graded", "ledger", "problems", "reasons", "rollouts", "seen", "selected", "splits", "synthesised",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("select nope from problems", "nope.*views: benchmarks, dropped"),
        ("selec 1", "syntax error"),
        ("select * from read_csv('/etc/passwd')", "/etc/passwd.*reads the views and 'data://FILE', and nothing else"),
        ("copy problems to '/tmp/stolen.csv'", "/tmp/stolen.csv"),
        ("copy problems to 'data://sources/problems.parquet'", "PermissionError: .*cannot be written: a query only reads"),
        ("set enable_external_access = true", "locked"),
        ("attach 'other.db'", "other.db"),
    ],
)
def test_a_wrong_statement_is_one_sentence(project, query, words):
    with pytest.raises(UserError, match=words):
        rows_of(project, query)


WRITES = [
    "copy problems to 'FILE'",
    "copy (select 1) to 'NEW' (format csv)",
    "copy problems to 'FOLDER' (format parquet, partition_by (domain), overwrite_or_ignore)",
    "copy problems to 'FOLDER' (format parquet, per_thread_output)",
    "copy problems from 'FILE'",
    "select 1; copy problems to 'FILE'",
    "explain analyze copy problems to 'FILE'",
    "prepare p as copy problems to 'FILE'; execute p",
    "export database 'FOLDER'",
    "export database 'FOLDER' (format parquet)",
    "import database 'FOLDER'",
    "attach 'NEW' as other",
    "attach 'FILE' as other (type sqlite)",
    "attach 'NEW' as other; create table other.t as select 1",
    "create table t as select * from problems; copy t to 'FILE'",
    "install httpfs",
    "force install httpfs from 'FOLDER'",
    "load 'FILE'",
    "load httpfs",
    "create secret s (type s3, key_id 'x')",
    "create persistent secret s in local_file (type http)",
    "set temp_directory = 'FOLDER'",
    "set secret_directory = 'FOLDER'",
    "set log_query_path = 'NEW'",
    "set profile_output = 'NEW'",
    "pragma profile_output = 'NEW'",
    "pragma enable_profiling",
    "set allowed_directories = ['/']",
    "set disabled_filesystems = ''",
    "reset disabled_filesystems",
    "set lock_configuration = false",
    "call enable_logging(storage = 'file', storage_path = 'FOLDER')",
    "call enable_logging(storage = 'file', storage_config = {'path': 'FOLDER'})",
    "call enable_profiling(save_location = 'NEW')",
    "checkpoint",
    "vacuum",
    "drop view problems",
    "create or replace view problems as select 1",
]


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("form", ["data://", "absolute", "relative"])
def test_no_statement_writes(project, tmp_path, monkeypatch, form):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(project)
    prefix = {"data://": "data://", "absolute": f"{project}/data/".replace("'", "''"), "relative": "data/"}[form]
    before = tree(tmp_path)
    for statement in WRITES:
        for word, name in (("FILE", "sources/problems.parquet"), ("NEW", "new"), ("FOLDER", "folder")):
            statement = statement.replace(word, prefix + name)
        with views.connect(project) as connection, contextlib.suppress(UserError):
            views.run(connection, statement)
        assert tree(tmp_path) == before, statement


READS = [
    "select * from read_text('PATH')",
    "select * from read_blob('PATH')",
    "select * from read_csv('PATH')",
    "select * from read_json('PATH')",
    "select * from 'PATH'",
    "select * from glob('PATH')",
    "select * from sniff_csv('PATH')",
    "select content from read_text(['data://sources/problems.parquet', 'PATH'])",
    "create table t as select * from read_text('PATH'); select * from t",
    "from query('select * from read_text(''PATH'')')",
    "create table t (a text); copy t from 'PATH' (format csv, delim '\x01'); select * from t",
]


@pytest.mark.parametrize("path", ["SECRET", "file://SECRET", "data://../secret.txt", "data://../../secret.txt", "data:///../secret.txt", "data/../secret.txt"])
def test_no_statement_reads_what_is_not_below_data(project, monkeypatch, path):
    monkeypatch.chdir(project)
    secrets = [project / "secret.txt", project.parent / "secret.txt"]
    for secret in secrets:
        secret.write_text("the treasure is under the oak")
    for statement in READS:
        text = statement.replace("PATH", path.replace("SECRET", str(secrets[0]).replace("'", "''")))
        told = ""
        try:
            told = str(rows_of(project, text))
        except UserError as error:
            told = str(error).replace(text, "").replace(str(secrets[0]), "")
        assert "treasure" not in told, text


def test_files_below_data_and_tables_in_memory_are_at_hand(project):
    assert rows_of(project, "select count(*) n from 'data://sources/problems.parquet'") == [{"n": 3}]
    assert rows_of(project, "select file from glob('data://curation/*.json')") == [{"file": "data://curation/ledger.json"}]
    assert rows_of(project, "select steps[1].step s from read_json('data://curation/ledger.json')") == [{"s": "exact_dedup"}]
    assert rows_of(project, "create table t as select problem_id from problems; select count(*) n from t") == [{"n": 3}]
    assert rows_of(project, "with w as (select 1 a) select a from w") == [{"a": 1}]
    for text in ("describe problems", "summarize problems", "explain select * from rollouts", "show tables"):
        assert rows_of(project, text), text


def test_a_link_of_the_cache_is_followed(project):
    """With `cache.type symlink` DVC makes links out of data/ to what it keeps."""
    kept = project / ".dvc" / "cache" / "ab"
    kept.parent.mkdir(parents=True)
    (project / paths.PROBLEMS).rename(kept)
    (project / paths.PROBLEMS).symlink_to(kept)
    assert rows_of(project, "select count(*) n from problems") == [{"n": 3}]


def test_a_project_without_data_says_so(tmp_path):
    with pytest.raises(UserError, match="nothing to query yet"):
        views.connect(tmp_path)


def test_the_command_lists_prints_and_writes_json(project, capsys):
    assert main(["query"]) == 0
    assert "ledger (2 rows): stage, place, step, input, kept, dropped" in capsys.readouterr().out
    assert main(["query", "select problem_id, prompt from problems order by 1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["problem_id", "prompt"] and printed[1].startswith("one") and len(printed) == 4
    assert main(["query", "--format", "json", "select topics from problems limit 1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"topics": ["a"]}
    assert main(["query", "select 1 from problems where false"]) == 0
    assert capsys.readouterr().out == "no rows\n"
    assert main(["query", "select nope from problems"]) == 2
    assert "nope" in capsys.readouterr().err


def test_the_files_are_read_as_they_are(project):
    file = project / paths.PROBLEMS
    assert rows_of(project, "select count(*) n from problems") == [
        {"n": duckdb.sql(f"select count(*) from '{str(file).replace(chr(39), chr(39) * 2)}'").fetchall()[0][0]}
    ]
