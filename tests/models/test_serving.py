"""`touchstone models serve`: llama.cpp's own server on loopback, with a tiny file that the test writes."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from ggufs import tiny, write

from pipelines.chat import ChatClient
from pipelines.errors import UserError
from pipelines.models.gguf.convert import convert
from pipelines.models.loading import load_policy
from pipelines.models.serving import Serving, served

pytest.importorskip("xllamacpp", reason="the extra `llamacpp` is not installed")

MESSAGES = [{"role": "user", "content": "one two 12"}]
TOKENS = 6


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model, tokenizer = tiny("llama")
    return write(tmp_path_factory.mktemp("served") / "tiny.gguf", "llama", model, tokenizer)


def greedy(folder):
    """What our own reading of the file says next, by its chat template."""
    model, tokenizer = load_policy(folder)
    prompt = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        made = model.float().generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_it_answers_as_the_converted_folder_does_and_only_to_the_key(file, tmp_path):
    convert(file, tmp_path)
    with served(file, "wise", Serving(slots=2, context=128, key="secret")) as url:
        assert url.startswith("http://127.0.0.1:")
        reply = ChatClient(url, "wise", "secret").complete(MESSAGES, temperature=0.0, max_tokens=TOKENS)
        assert (reply.text, reply.cut, reply.model) == (greedy(tmp_path), True, "wise")
        refused = ChatClient(url, "wise", "other", retries=0).complete(MESSAGES, temperature=0.0, max_tokens=TOKENS)
        assert refused.text is None and "401" in refused.error
    assert ChatClient(url, "wise", "secret", retries=0).complete(MESSAGES, temperature=0.0, max_tokens=1).text is None


def test_the_command_serves_until_it_is_interrupted(file):
    command = [sys.executable, "-m", "flows.cli", "models", "serve", str(file), "--port", "0", "--slots", "1", "--context", "128"]
    environment = os.environ | {"TOUCHSTONE_TEACHER_KEY": "secret"}
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job, as the tests may be one, ignores Ctrl-C
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heeds) as process:
        said = process.stdout.readline()
        assert said.startswith("tiny answers at http://127.0.0.1:") and "asks for the key in TOUCHSTONE_TEACHER_KEY" in said and "secret" not in said
        url = said.split()[3]
        assert ChatClient(url, "tiny", "secret").complete(MESSAGES, temperature=0.0, max_tokens=2).text is not None
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0 and errors == ""


def test_what_cannot_be_served_is_one_sentence(file, tmp_path):
    def refused(path, **how):
        with pytest.raises(UserError) as error, served(path, "wise", Serving(**how)):
            pass
        return str(error.value)

    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-64])
    assert "cut.gguf" in refused(tmp_path / "cut.gguf")
    assert "no such file" in refused(tmp_path / "none.gguf")
    with served(file, "wise", Serving(slots=1, context=128)) as url:
        port = int(url.split(":")[2].split("/")[0])
        assert f"port {port}" in refused(file, port=port, slots=1, context=128)
