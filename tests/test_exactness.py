"""One seed gives one result, with the threads that a user has and with more: gradients, whole runs, on tiny and on real vocabularies."""

import pytest
import torch

from benchmarks.exactness import rows
from pipelines.config.training import ArchitectureSettings
from pipelines.models.exactness import at_true, deterministic
from pipelines.models.scoring import CHUNK, token_logp
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer

THREADS = (1, 2, 4)
"""One, the machine's own here, and more than it has."""
TOKENIZER = train_tokenizer(["a b c"], 300)
DEFAULT = ArchitectureSettings(hidden_size=128, layers=4, heads=4, intermediate_size=384)
WIDE = 49_152
"""Words of SmolLM2: the head runs in several chunks."""


@pytest.fixture(params=[pytest.param(THREADS[0], marks=pytest.mark.long), *THREADS[1:]])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def gradients(model, ids, score) -> bytes:
    model.zero_grad()
    with deterministic(model.device):
        (token_logp(model, ids, score).sum() / 1000).backward()
    return b"".join(p.grad.numpy().tobytes() for p in model.parameters())


@pytest.mark.parametrize(("words", "prompts", "repeats"), [(300, 16, 8), (WIDE, 4, 3)])
def test_one_batch_has_one_gradient(threads, words, prompts, repeats):
    architecture = DEFAULT if words != WIDE else DEFAULT.model_copy(update={"hidden_size": 64, "layers": 2})
    model = tiny_model(architecture, TOKENIZER, 1)
    model.resize_token_embeddings(words, mean_resizing=False)
    ids, score = rows(words, prompts)
    assert (int(score.sum()) > CHUNK // words) == (words == WIDE)  # several chunks of the head, or one
    assert len({gradients(model, ids, score) for _ in range(repeats)}) == 1


def test_a_mask_selects_what_indexing_does():
    x, mask = torch.randn(3, 4, 5), torch.rand(3, 4) < 0.5
    assert torch.equal(at_true(x, mask), x[mask])
    assert torch.equal(at_true(x[:, :-1], mask[:, 1:]), x[:, :-1][mask[:, 1:]])


def test_what_has_no_deterministic_form_is_refused_and_settings_are_put_back():
    values = torch.zeros(4, requires_grad=True)
    with deterministic("cpu"), pytest.raises(RuntimeError, match="deterministic"):
        torch.nn.functional.max_unpool1d(values.view(1, 1, 4), torch.tensor([[[0, 0, 1, 1]]]), 2)
    assert not torch.are_deterministic_algorithms_enabled()
