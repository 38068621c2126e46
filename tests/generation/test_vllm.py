"""vLLM on its CPU build, in processes of its own and as a server: the same distribution as the policy's, new weights at once, no orphans."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines import guard
from pipelines.config.common import GenerationSettings
from pipelines.config.sources import ArithmeticSource
from pipelines.config.training import ArchitectureSettings
from pipelines.endpoint import GENERATION_KEY as KEY
from pipelines.endpoint import GENERATION_URL as URL
from pipelines.errors import InfrastructureError, UserError
from pipelines.generation import Request, Sample, TorchGenerator, create, serving
from pipelines.generation.vllm_engine import LocalVllm, write_weights
from pipelines.models.loading import save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.sft.examples import document
from pipelines.sources.arithmetic import problems as arithmetic

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make install-vllm")

PROBLEMS = list(arithmetic(ArithmeticSource(kind="arithmetic", count=40), 1, "test", Path()))
TOKENIZER = train_tokenizer([document(p) for p in PROBLEMS], 330)
LONG = Request(tuple(10 + i % 60 for i in range(100)), 1, ("long",))
"""A prompt of several blocks of the prefix cache."""


def model(seed):
    made = tiny_model(ArchitectureSettings(hidden_size=64, layers=2, heads=2, intermediate_size=96, context=256), TOKENIZER, seed).eval()
    with torch.no_grad():  # larger weights: a distribution far from uniform
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return made


OLD, NEW = model(3), model(4)


def settings(engine, **changes):
    given = {"temperature": 0.7, "max_new_tokens": 30, "vllm": {"enforce_eager": True, "kv_cache_gib": 0.1}, **changes}
    return GenerationSettings.model_validate({"engine": engine, **given})


def change(engine, **changes):
    """The same running vLLM with other settings of the samples."""
    engine._responses = dataclasses.replace(engine._responses, settings=settings("vllm", **changes))


@pytest.fixture(scope="module", params=["vllm", "vllm_server"])
def engine(request, tmp_path_factory):
    made = serving(settings(request.param), OLD, TOKENIZER, tmp_path_factory.mktemp("weights"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _as_before(request):
    """Every test finds the old weights and the usual settings."""
    if "engine" in request.fixturenames:
        made = request.getfixturevalue("engine")
        change(made)
        made.push(OLD, 0)


def worst(policy, requests, groups, temperature=0.7):
    """Largest difference of the samples' log-probabilities from the policy's own forward pass."""
    gap = 0.0
    for request, samples in zip(requests, groups, strict=True):
        for sample in samples:
            row = torch.tensor([[*request.prompt_ids, *sample.token_ids]])
            with torch.no_grad():
                logp = torch.log_softmax(policy(row).logits[0, len(request.prompt_ids) - 1 : -1] / temperature, -1)
            own = logp[torch.arange(len(sample.token_ids)), torch.tensor(sample.token_ids)]
            gap = max(gap, float((own - torch.tensor(sample.logp)).abs().max()))
    return gap


def requests(count=10, samples=4):
    return [Request(tuple(TOKENIZER(p.prompt)["input_ids"]), samples, ("k", p.problem_id)) for p in PROBLEMS[:count]]


def ids(groups):
    return [[s.token_ids for s in samples] for samples in groups]


def test_log_probabilities_are_those_of_the_policy_at_the_sampling_temperature(engine):
    asked = requests()
    groups = engine.generate(asked)
    assert worst(OLD, asked, groups) < 1e-3 < worst(OLD, asked, groups, temperature=1.0)  # processed, not raw
    ours = TorchGenerator(OLD, TOKENIZER, settings("torch")).generate(asked)
    spoken = [sum(len(s.token_ids) for g in made for s in g) for made in (groups, ours)]
    assert 0.8 < spoken[0] / spoken[1] < 1.25  # other draws of one distribution


def test_truncated_distributions_are_renormalised(engine):
    change(engine, top_k=3)
    (sample,), prompt = engine.generate([LONG])[0], list(LONG.prompt_ids)
    with torch.no_grad():
        logits = OLD(torch.tensor([[*prompt, *sample.token_ids]])).logits[0, len(prompt) - 1 : -1] / 0.7
    kept = torch.log_softmax(logits.masked_fill(logits < logits.topk(3).values[:, -1:], -torch.inf), -1)
    own = kept[torch.arange(len(sample.token_ids)), torch.tensor(sample.token_ids)]
    assert float((own - torch.tensor(sample.logp)).abs().max()) < 1e-3
    change(engine, temperature=0.0)
    greedy = engine.generate(requests(5, 2))
    assert all(one.token_ids == other.token_ids and set(one.logp) == {0.0} for one, other in greedy)
    assert ids(greedy) == ids(TorchGenerator(OLD, TOKENIZER, settings("torch", temperature=0.0)).generate(requests(5, 2)))


def test_a_sample_depends_on_its_key_and_not_on_its_mates(engine):
    everyone = engine.generate(requests())
    backwards = engine.generate(requests()[::-1])[::-1]
    later = engine.generate([Request(r.prompt_ids, 2, r.key, first=2) for r in requests()])
    assert ids(everyone) == ids(backwards) and ids(later) == [group[2:] for group in ids(everyone)]
    assert len({tuple(s.token_ids) for s in everyone[0]}) > 1
    other = engine.generate([Request(r.prompt_ids, 4, (*r.key, "other")) for r in requests()])
    assert ids(other) != ids(everyone)


def test_pushed_weights_take_effect_and_stale_keys_and_values_go(engine):
    asked = [LONG, *requests()]
    before = engine.generate(asked)
    engine.push(NEW, 7)
    after = engine.generate(asked)
    assert {s.policy_version for g in before for s in g} == {0} and {s.policy_version for g in after for s in g} == {7}
    assert worst(NEW, asked, after) < 1e-3 < 0.1 < worst(OLD, asked, after)
    engine.push(OLD, 8)
    assert ids(engine.generate(asked)) == ids(before)


def test_without_an_emptied_prefix_cache_an_update_is_stale(engine):
    if not isinstance(engine._backend, LocalVllm):
        pytest.skip("shown once, on the engine without HTTP")
    vllm = engine._backend._llm
    engine.generate([LONG])
    write_weights(engine._folder, NEW)
    vllm.collective_rpc("reload_weights", kwargs={"weights_path": str(engine._folder)})
    assert worst(NEW, [LONG], engine.generate([LONG])) > 0.1  # new weights on keys and values of the old
    vllm.reset_prefix_cache()
    assert worst(NEW, [LONG], engine.generate([LONG])) < 1e-3


def test_finish_reasons_stop_strings_and_room(engine):
    free = [s for group in engine.generate(requests()) for s in group]
    assert {s.finish_reason for s in free} == {"stop", "length"}
    for s in free:
        assert (s.token_ids[-1] == TOKENIZER.eos_token_id) == (s.finish_reason == "stop") and TOKENIZER.eos_token_id not in s.token_ids[:-1]
        assert len(s.token_ids) == 30 or s.finish_reason == "stop"
    stop = next(s.text[5:8] for s in free if len(s.text) > 20 and s.text[5:8].strip())
    change(engine, stop=[stop, "never to be said"])
    stopped = [s for group in engine.generate(requests()) for s in group]
    for one, other in zip(free, stopped, strict=True):
        assert other.token_ids == one.token_ids[: len(other.token_ids)]
        where = one.text.find(stop)
        assert (other.text, other.finish_reason) == ((one.text[:where], "stop") if where >= 0 else (one.text, one.finish_reason))
    assert any(len(other.token_ids) < len(one.token_ids) for one, other in zip(free, stopped, strict=True))
    with pytest.raises(UserError, match="exceed the model's context of 256"):
        engine.generate([Request(tuple(range(5, 240)), 1, ("k",))])


def test_more_prompt_tokens_than_fit_a_step_of_the_engine(engine):
    asked = [Request((5 + i, *LONG.prompt_ids), 1, ("many", i)) for i in range(60)]
    assert worst(OLD, asked, engine.generate(asked)) < 1e-3


def test_weights_that_someone_else_pushed_are_refused(engine):
    engine._backend.relabel("another run's")
    with pytest.raises(InfrastructureError, match="another run's"):
        engine.generate(requests(1))


def test_a_server_at_an_address_gets_the_weights(engine, tmp_path, monkeypatch):
    if isinstance(engine._backend, LocalVllm):
        pytest.skip("it has no address")
    save_policy(tmp_path / "model", NEW, TOKENIZER)
    server = engine._backend._server
    monkeypatch.setenv(URL, server.url + "/v1")
    monkeypatch.setenv(KEY, server.key)
    made = create(settings("vllm_server"), tmp_path / "model")
    asked = requests(5, 2)
    assert worst(NEW, asked, made.generate(asked)) < 1e-3
    made.close()
    with pytest.raises(InfrastructureError, match="another run"):
        engine.generate(asked)
    monkeypatch.setenv(KEY, "wrong")
    with pytest.raises(InfrastructureError, match=r"HTTP 401 on /v1/models; it must run with VLLM_SERVER_DEV_MODE=1"):
        create(settings("vllm_server"), tmp_path / "model")


HANGING = """
import json, sys, time
from pathlib import Path
from pipelines.generation import Request, create
from pipelines.config.common import GenerationSettings
if __name__ == "__main__":
    made = create(GenerationSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
    (sample,), = made.generate([Request(tuple(json.loads(sys.argv[3])), 1, ("k",))])
    mark = getattr(made._backend, "_server", made._backend)._guard.mark
    try:
        made.push(None, 1)
    except ValueError as error:
        print(json.dumps([mark, sample.token_ids, sample.logp, str(error)]), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("name", ["vllm", "vllm_server"])
def test_a_model_on_disk_is_served_and_a_killed_parent_leaves_no_process(name, tmp_path):
    save_policy(tmp_path / "model", OLD, TOKENIZER)
    (tmp_path / "hanging.py").write_text(HANGING)
    command = [sys.executable, tmp_path / "hanging.py", settings(name).model_dump_json(), tmp_path / "model", json.dumps(LONG.prompt_ids)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    mark, token_ids, logp, refusal = json.loads(next(line for line in parent.stdout if line.startswith("[")))
    assert worst(OLD, [LONG], [[Sample(token_ids, logp, "", "")]]) < 1e-3 and "does not change" in refusal
    assert len(guard.marked(mark)) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while guard.marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert guard.marked(mark) == []
