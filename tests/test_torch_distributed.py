"""PyTorch: two processes (gloo, CPU), with DistributedDataParallel and with FSDP2. Ranks stay equal, or the call says why they would not."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kits import torch_ranks

Both = Callable[..., list[Any]]
AGAIN = r"(?s)drift apart.*stem\.conv\.weight.*Unfreeze the bare model and wrap it again"
NEXT = r"(?s)was made before its model was frozen or unfrozen.*stem\.conv\.weight is trainable and is not averaged.*Wrap the model again"
WAITS = r"(?s)was made before its model was frozen or unfrozen.*waits for the gradients of what is frozen.*Wrap the model again"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Runs a function of ``torch_ranks`` in two processes, and returns what it returned in each."""
    assert torch.distributed.is_gloo_available()
    context = multiprocessing.get_context("spawn")
    meeting = str(tmp_path_factory.mktemp("ranks") / "meeting")
    pipes = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=torch_ranks.serve, args=(rank, meeting, pipes[rank][1]), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()

    def run(scenario: Callable[..., Any], *arguments: Any) -> list[Any]:
        for here, _ in pipes:
            here.send((scenario.__name__, arguments))
        found = []
        for here, _ in pipes:
            assert here.poll(180), "a rank hangs"
            found.append(here.recv())
        assert all(well for well, _ in found), "\n".join(str(what) for well, what in found if not well)
        return [what for _, what in found]

    yield run
    for (here, _), process in zip(pipes, processes, strict=True):
        here.send(None)
        process.join(20)
        process.kill()


def moved(before: torch_ranks.Values, after: torch_ranks.Values) -> set[str]:
    assert before.keys() == after.keys()
    return {path for path in before if before[path] != after[path]}


def parts(paths: set[str]) -> set[str]:
    return {path.partition(".")[0] for path in paths}


# DistributedDataParallel.


def test_ranks_drift_apart_when_unfrozen_by_hand(both: Both) -> None:
    assert max(both(torch_ranks.naive_unfreezing)) > 1e-3


def test_frozen_before_wrapping(both: Both) -> None:
    for spread, before, after in both(torch_ranks.frozen_before_wrapping):
        assert spread == 0
        assert parts(moved(before, after)) == {"body", "head"}


@pytest.mark.parametrize("given", ["wrapper", "module", "part"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["frozen by us", "frozen by hand"])
def test_unfreezing_after_wrapping_is_refused_whatever_is_given(both: Both, given: str, by_hand: bool) -> None:
    for said, spread in both(torch_ranks.unfrozen_after_wrapping, given, by_hand):
        assert re.search(AGAIN if given == "wrapper" else NEXT, said)
        assert spread == 0


@pytest.mark.parametrize("given", ["module", "round it"])
def test_undoing_after_wrapping_is_refused(both: Both, given: str) -> None:
    for said, spread in both(torch_ranks.undone_after_wrapping, given):
        assert re.search(AGAIN if given == "round it" else NEXT, said)
        assert spread == 0


def test_what_the_error_says_repairs_it(both: Both) -> None:
    for spread, before, after in both(torch_ranks.unfrozen_and_wrapped_again):
        assert spread == 0
        assert parts(moved(before, after)) == {"stem", "body", "head"}


def test_wrapped_while_all_is_trainable(both: Both) -> None:
    for rank, (spreads, first, second, third) in enumerate(ranks := both(torch_ranks.wrapped_for_change)):
        assert spreads == [0, 0, 0]
        # The wrapper hands the first rank's statistics to the others before every forward pass, so theirs become its own.
        statistics = {"stem.norm.running_mean", "stem.norm.running_var"} if rank else set()
        assert {path for path in moved(first, second) if path.startswith("stem")} == statistics
        assert all(second[path] == ranks[0][1][path] for path in statistics)
        assert {"body", "head"} <= parts(moved(first, second))
        assert parts(moved(second, third)) == {"stem", "body", "head"}


@pytest.mark.parametrize("given", ["wrapper", "module"])
def test_freezing_after_wrapping_is_refused(both: Both, given: str) -> None:
    for said, spread in both(torch_ranks.frozen_after_wrapping, given):
        waits = r"(?s)gradients that never come.*stem\.conv\.weight.*Freeze first and wrap then, or wrap with find_unused_parameters=True"
        assert re.search(waits if given == "wrapper" else WAITS, said)
        assert spread == 0


def test_rows_after_wrapping(both: Both) -> None:
    for spread, before, after in both(torch_ranks.some_rows):
        assert spread == 0
        path, old = "body.layer_2.weight", 4 * 6 * 4
        assert before[path][:old] == after[path][:old]
        assert before[path][old:] != after[path][old:]


# FSDP2.


@pytest.mark.parametrize("order", ["freeze, shard", "shard, freeze"])
@pytest.mark.parametrize("fresh", [False, True], ids=["attached", "a new optimizer"])
def test_fsdp2_trains_as_by_hand(both: Both, order: str, fresh: bool) -> None:
    """Both orders, real BatchNorm, frozen and unfrozen under the sharding: bit for bit the run that torch's own means give."""
    ours, theirs = both(torch_ranks.sharded, order, True, fresh), both(torch_ranks.sharded, order, False, fresh)
    assert ours == theirs
    for begin, frozen, end in ours:
        assert parts(moved(begin, frozen)) == {"body", "head"}
        assert {"stem.norm.running_mean", "stem.norm.running_var"} <= moved(frozen, end)
        assert parts(moved(frozen, end)) == {"stem", "body", "head"}
    shared = [{path: value for path, value in end.items() if "running" not in path} for _, _, end in ours]
    assert shared[0] == shared[1]


def test_verify_reads_the_shards(both: Both) -> None:
    said = both(torch_ranks.sharded_and_verified)
    assert all("stem.conv.weight: moved" in one for one in said)


def test_rows_of_a_shard_are_refused(both: Both) -> None:
    assert all("Rows of a DTensor can't be frozen" in one for one in both(torch_ranks.sharded_rows))
