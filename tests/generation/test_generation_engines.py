"""Engines `server` and `scripted`, the HTTP client of `vllm_server` and the guard, against real servers and processes on this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from chat_endpoint import Answer, serve

from pipelines import guard
from pipelines.config.common import GenerationSettings
from pipelines.config.sources import ArithmeticSource
from pipelines.config.training import ArchitectureSettings
from pipelines.endpoint import GENERATION_KEY as KEY
from pipelines.endpoint import GENERATION_URL as URL
from pipelines.errors import InfrastructureError, UserError
from pipelines.generation import Request, ScriptedGenerator, create, respond, serving
from pipelines.models.loading import save_policy
from pipelines.models.scoring import pad
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.prompting import prompt_ids
from pipelines.sft.examples import document
from pipelines.sources.arithmetic import problems as arithmetic

PROBLEMS = list(arithmetic(ArithmeticSource(kind="arithmetic", count=6), 1, "test", Path()))
TOKENIZER = train_tokenizer([document(p) for p in PROBLEMS], 330)
POLICY = tiny_model(ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=256), TOKENIZER, 3).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "policy"
    save_policy(path, POLICY, TOKENIZER)
    return path


def settings(engine, **changes):
    return GenerationSettings.model_validate({"engine": engine, "max_new_tokens": 20, "server": {"model": "big", "retries": 1}, **changes})


def completion(text, finish_reason):
    return Answer(json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}]}).encode())


def test_an_endpoint_answers_problems_in_text(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    with serve(lambda prompt, number: completion(f"about {prompt}", "length" if prompt == PROBLEMS[1].prompt else "stop")) as endpoint:
        monkeypatch.setenv(URL, endpoint.url)
        chosen = settings("server", temperature=0.5, top_p=0.9, stop=["###"])
        groups = respond(create(chosen, folder, replies=tmp_path / "replies.sqlite"), PROBLEMS[:3], 2, ("s",))
        asked = list(endpoint.requests)
        # what was answered is kept: another process asks for nothing again, whatever else it asks for
        again = respond(create(chosen, folder, replies=tmp_path / "replies.sqlite"), PROBLEMS[:3][::-1], 3, ("s",))[::-1]
        assert [group[:2] for group in again] == groups and len(endpoint.requests) == len(asked) + 3
        later = respond(create(chosen, folder, replies=tmp_path / "replies.sqlite"), PROBLEMS[:3], 1, ("s",), first=2)
        assert [group[2:] for group in again] == later and len(endpoint.requests) == len(asked) + 3
    for problem, group in zip(PROBLEMS, groups, strict=False):
        for sample in group:
            assert sample.text == f"about {problem.prompt}" and sample.token_ids == TOKENIZER(sample.text)["input_ids"]
            assert sample.logp == [] and sample.finish_reason == ("length" if problem is PROBLEMS[1] else "stop")
    assert len({request["seed"] for request in asked}) == 6 and set(endpoint.keys) == {"Bearer secret"}
    fixed = {"model": "big", "temperature": 0.5, "max_tokens": 20, "top_p": 0.9, "stop": ["###"], "path": "/v1/chat/completions"}
    assert all({name: request[name] for name in fixed} == fixed and "top_k" not in request for request in asked)
    assert "secret" not in chosen.model_dump_json()


def test_an_endpoint_that_fails_is_said_to(folder, monkeypatch):
    monkeypatch.delenv(URL, raising=False)
    with pytest.raises(UserError, match=f"asks the endpoint that {URL} names, which is not set"):
        create(settings("server"), folder)
    with serve(lambda prompt, number: Answer(status=401)) as endpoint:
        monkeypatch.setenv(URL, endpoint.url)
        with pytest.raises(UserError, match=r"generation\.server\.model is empty"):
            create(settings("server", server={}), folder)
        with pytest.raises(InfrastructureError, match="HTTP 401"):
            respond(create(settings("server"), folder), PROBLEMS[:1], 1, ("s",))


def test_training_on_responses_without_log_probabilities_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"generation\.engine 'server' gives no log-probabilities .* choose torch, vllm or vllm_server"):
        serving(settings("server"), POLICY, TOKENIZER, tmp_path)


def test_vllm_is_asked_for_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    for engine in ("vllm", "vllm_server"):
        with pytest.raises(UserError, match=f"generation.engine {engine} needs vLLM, which is not installed: `make install-vllm`"):
            create(settings(engine), folder)


def test_a_script_is_said_with_the_log_probabilities_of_the_policy(folder, tmp_path):
    said = {p.prompt: ["It is 7.", "No idea" * 20] for p in PROBLEMS}
    (tmp_path / "script.json").write_text(json.dumps(said))
    chosen = settings("scripted", script=str(tmp_path / "script.json"), temperature=0.5)
    for generator, sure in ((create(chosen, folder), True), (serving(chosen, POLICY, TOKENIZER, tmp_path), False)):
        groups = respond(generator, PROBLEMS, 3, ("s",))
        for problem, (first, second, third) in zip(PROBLEMS, groups, strict=True):
            assert (first.text, first.finish_reason) == ("It is 7.", "stop") and first.token_ids[-1] == TOKENIZER.eos_token_id
            assert second.finish_reason == "length" and len(second.token_ids) == 20 and third == first
            row = pad([[*(prompt := prompt_ids(TOKENIZER, problem)), *first.token_ids]])
            with torch.no_grad():
                logp = torch.log_softmax(POLICY(row).logits[0, len(prompt) - 1 : -1] / 0.5, -1)[range(len(first.token_ids)), first.token_ids]
            expected = torch.zeros_like(logp) if sure else logp
            torch.testing.assert_close(torch.tensor(first.logp), expected, atol=1e-5, rtol=0)
    generator.push(POLICY, 4)
    assert respond(generator, PROBLEMS[:1], 1, ("s",))[0][0].policy_version == 4
    counted = ScriptedGenerator(TOKENIZER, settings("scripted"), lambda request, number: f"{number}")
    assert [s.text for s in counted.generate([Request((5, 6), 3, ("k",), first=2)])[0]] == ["2", "3", "4"]
    with pytest.raises(UserError, match="has no response to the prompt"):
        (tmp_path / "script.json").write_text("{}")
        respond(create(chosen, folder), PROBLEMS[:1], 1, ("s",))
    with pytest.raises(UserError, match=r"generation\.script '' must be a JSON file"):
        create(settings("scripted"), folder)


class FakeVllm:
    """A server with the routes of vLLM that the client uses. Its weights are the file it was told to read; `trouble` spoils answers."""

    def __init__(self):
        self.label, self.weights, self.paused, self.log, self.mode = "default", b"", False, [], "processed_logprobs"
        self.trouble = lambda number: {}
        owner, self.generated = self, 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply({"vllm_config": {"model_config": {"logprobs_mode": owner.mode}}, "data": [{"max_model_len": 64}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
                owner.log.append((self.path, body))
                self.reply(owner.post(self.path.partition("?")[0], body))

            def reply(self, content):
                raw = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def post(self, route, body):
        if route in ("/pause", "/resume"):
            self.paused = route == "/pause"
        elif route == "/update_weight_version":
            self.label = body["new_version"]
        elif route == "/collective_rpc":
            assert self.paused and self.label == "unfinished" and body["method"] == "reload_weights"
            self.weights = (Path(body["kwargs"]["weights_path"]) / "model.safetensors").read_bytes()
        elif route == "/inference/v1/generate":
            self.generated += 1
            token = 60 + body["sampling_params"]["seed"] % 50
            spans = [{"version": self.label, "start": 0, "end": 1}]
            choice = {"token_ids": [token], "finish_reason": "length", "weight_versions": spans}
            return {"choices": [choice | {"logprobs": {"content": [{"token_id": token, "logprob": -0.5}]}} | self.trouble(self.generated)]}
        return {"success": True}


@pytest.fixture
def fake(monkeypatch):
    made = FakeVllm()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv(URL, made.url)
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_weights_go_to_a_paused_server_and_samples_bear_its_version(fake, tmp_path):
    generator = serving(settings("vllm_server", stop=["x"]), POLICY, TOKENIZER, tmp_path / "weights")
    first = fake.weights
    requests = [Request((5, 6, place), 2, ("k", place)) for place in range(3)]
    before = generator.generate(requests)
    other = tiny_model(ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=256), TOKENIZER, 4)
    fake.log.clear()
    generator.push(other, 3)
    routes = ["/pause?mode=wait", "/update_weight_version", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
    assert [path for path, _ in fake.log] == routes and not fake.paused and fake.weights != first
    after = generator.generate(requests)
    assert {s.policy_version for g in before for s in g} == {0} and {s.policy_version for g in after for s in g} == {3}
    assert [[s.token_ids for s in g] for g in before] == [[s.token_ids for s in g] for g in after]  # seeds are of the keys
    (alone,) = generator.generate([Request((5, 6, 1), 1, ("k", 1), first=1)])[0]
    assert alone == after[1][1] and alone.logp == [-0.5]
    sent = fake.log[-1][1]
    assert sent["token_ids"] == [5, 6, 1] and 0 <= sent["sampling_params"].pop("seed") < 2**63
    fixed = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 20, "stop": ["x"], "stop_token_ids": [TOKENIZER.eos_token_id], "logprobs": 0}
    assert sent["sampling_params"] == fixed
    with pytest.raises(UserError, match="a prompt of 50 tokens and max_new_tokens 20 exceed the model's context of 64"):
        generator.generate([Request((5,) * 50, 1, ("k",))])


def test_what_a_server_breaks_off_is_asked_again_and_old_weights_are_refused(fake, tmp_path):
    generator = serving(settings("vllm_server"), POLICY, TOKENIZER, tmp_path / "weights")
    request = Request((5, 6), 1, ("k",))
    fake.trouble = lambda number: {"finish_reason": "abort"} if number == 1 else {}
    assert generator.generate([request])[0][0].finish_reason == "length" and fake.generated == 2
    fake.trouble = lambda number: {"finish_reason": "abort"}
    with pytest.raises(InfrastructureError, match=r"broken off \(abort\) \(2 tries\) on /inference/v1/generate"):
        generator.generate([request])
    fake.trouble = lambda number: {"weight_versions": [{"version": "old", "start": 0, "end": 1}]}
    with pytest.raises(InfrastructureError, match=r"sampled with weights \['old'\]"):
        generator.generate([request])
    fake.mode = "raw_logprobs"
    with pytest.raises(UserError, match="gives raw_logprobs, not those of the distribution sampled from"):
        serving(settings("vllm_server"), POLICY, TOKENIZER, tmp_path / "weights")


FAMILY = """
import os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from pipelines.guard import Guard
guard = Guard()
stubborn = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", stubborn], env=os.environ | guard.environment, start_new_session=True)
print(guard.mark, flush=True)
time.sleep(600)
"""


def test_what_an_engine_started_ends_with_a_parent_that_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", FAMILY, str(Path(guard.__file__).parents[1])], stdout=subprocess.PIPE, text=True)
    mark = parent.stdout.readline().strip()
    wait(lambda: len(guard.marked(mark)) == 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait(lambda: not guard.marked(mark))


def test_a_closed_guard_leaves_nothing():
    watch = guard.Guard()
    child = subprocess.Popen(["sleep", "600"], env=os.environ | watch.environment)
    watch.close()
    assert child.wait(timeout=0) == -signal.SIGTERM


def wait(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
