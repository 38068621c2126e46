"""The program's side of a stage of kind command (docs/COMMAND.md), with the standard library alone: `from touchstone_stage import Stage`.

Nothing here is needed: all of it is reading settings.json and rows.jsonl, one HTTP request, and lines of JSON.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request

ANSWERS = 1024
"""Of one request to the scorer."""


class Stage:
    """What settings.json says. settings: as they stand in params.yaml. model, rows_parquet, rows_jsonl, out, resume: paths."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder or os.environ["TOUCHSTONE_STAGE"]
        with open(os.path.join(self.folder, "settings.json"), encoding="utf-8") as file:
            given = json.load(file)
        self.name: str = given["stage"]
        self.seed: int = given["seed"]
        self.device: str = given["device"]
        self.settings: dict = given["settings"]
        self.model: str = given["model"]
        self.rows_parquet: str = given["rows_parquet"]
        self.rows_jsonl: str = given["rows_jsonl"]
        self.out: str = given["out"]
        self.resume: str = given["resume"]
        self._scorer: str = given["scorer"]

    def rows(self) -> list[dict]:
        """All rows: the columns of a problem, `messages` (the prompt in chat turns) and `completion` (the worked solution as it should be written,
        None where there is none)."""
        with open(self.rows_jsonl, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def score(self, answers: list[tuple[str, str]]) -> list[dict]:
        """The verdict on each (problem_id, response), in order: {outcome, score, extracted, detail}."""
        verdicts: list[dict] = []
        for start in range(0, len(answers), ANSWERS):
            asked = [{"problem_id": problem, "response": response} for problem, response in answers[start : start + ANSWERS]]
            body = json.dumps({"answers": asked}).encode()
            request = urllib.request.Request(f"{self._scorer}/score", body, {"Content-Type": "application/json"})
            try:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
                    verdicts += json.loads(reply.read())["verdicts"]
            except urllib.error.HTTPError as error:
                raise ValueError(json.loads(error.read())["error"]) from None
        return verdicts

    def log(self, step: int, total: int | None = None, **figures: float) -> None:
        """Figures of a step, for the journal and the report. Steps rise. total: how many there will be."""
        self._append("metrics.jsonl", [{"step": step, **({"total": total} if total else {}), **figures}])

    def keep(self, rollouts: list[dict]) -> None:
        """What was sampled: {step, problem_id, response} each, and where they are known group, reward, finish_reason, prompt_ids, response_ids."""
        self._append("rollouts.jsonl", rollouts)

    def _append(self, name: str, rows: list[dict]) -> None:
        with open(os.path.join(self.out, name), "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
