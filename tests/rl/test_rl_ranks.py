"""Data-parallel ranks in real processes: their losses and gradients add up to those of one process with all rows."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from batches import loss_and_gradients, ragged, widened

from pipelines.rl import RECIPES
from pipelines.rl.ranks import gather


def rows_of(rank: int):
    """The fixture's rows of a rank: one group on the first, two on the second, whose padding is wider."""
    made, live = ragged(3)
    index = torch.arange(4) if rank == 0 else torch.arange(4, 12)
    made, live = made.rows(index), {name: value[index] for name, value in live.items()}
    return widened(made, live, 2) if rank else (made, live)


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    made, live = rows_of(rank)
    whole, mine = gather(made)
    assert len(whole.reward_B) == 12 and len(torch.unique(whole.group_B)) == 3
    assert torch.equal(whole.reward_B[mine], made.reward_B)
    slices = [torch.arange(len(made.reward_B))]
    found = {name: loss_and_gradients(row, made, live, slices) for name, row in RECIPES.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_add_up_to_one_process(tmp_path):
    processes.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    made, live = ragged(3)
    assert list(first) == list(RECIPES)
    for name in first:
        loss, gradients = loss_and_gradients(RECIPES[name], made, live)
        assert first[name][0] + second[name][0] == pytest.approx(loss, abs=1e-9), name
        for tensor, gradient in gradients.items():
            ranks = torch.cat([first[name][1][tensor], second[name][1][tensor][:, :7] if gradient.ndim > 1 else second[name][1][tensor]])
            torch.testing.assert_close(ranks, gradient, atol=1e-9, rtol=0, msg=f"{name}: {tensor}")
