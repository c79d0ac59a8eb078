"""PyTorch: a held layer stays held through everything that people do to a model. Every way × both rules × dropout on and off, with real steps."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from kits.torch import arrays, hooks
from unifreeze import freeze

Call = Callable[[torch.Tensor], torch.Tensor]
Now = Callable[[], object]


class DropPath(nn.Module):
    """Somebody's own: a module without parameters that reads ``self.training``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        return x * (torch.rand_like(x[:, :1, :1]) > self.rate)


class Part(nn.Module):
    """One of each."""

    def __init__(self, rate: float, *, recurrent: bool, parametrized: bool) -> None:
        super().__init__()
        self.batch = nn.BatchNorm1d(6)
        self.bare = nn.BatchNorm1d(6, affine=False)
        self.instance = nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
        self.spectral = (parametrizations if parametrized else nn.utils).spectral_norm(nn.Linear(6, 6))
        self.weight = parametrizations.weight_norm(nn.Linear(6, 6)) if parametrized else nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, dropout=rate, batch_first=True)
        self.path = DropPath(rate)
        self.drop = nn.Dropout(rate)
        self.lstm = nn.LSTM(6, 6, num_layers=2, dropout=rate, batch_first=True) if recurrent else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.weight(self.spectral(self.instance(self.bare(self.batch(x)))))
        x = x + self.path(self.attention(x, x, x, need_weights=False)[0])
        return self.drop(x if self.lstm is None else self.lstm(x)[0])


class World(nn.Module):
    def __init__(self, rate: float, **options: bool) -> None:
        super().__init__()
        self.part = Part(rate, **options)
        self.head = nn.Linear(6, 3)
        self.recompute: bool | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = self.part if self.recompute is None else partial(checkpoint, self.part, use_reentrant=self.recompute)
        return self.head(part(x if self.recompute is None else x.requires_grad_())).mean(1)


def world(rate: float, *, recurrent: bool = True, parametrized: bool = True) -> World:
    torch.manual_seed(0)
    model = World(rate, recurrent=recurrent, parametrized=parametrized)
    with torch.no_grad():
        for path, array in arrays(model):
            if path.endswith(("running_mean", "running_var")):
                array.uniform_(0.5, 2.0)
    return model.train()


def inputs(seed: int = 0) -> torch.Tensor:
    return torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(seed)) + 1


# What people do. Each gets a model and how to freeze its part now, and returns what is called from then on.


def as_it_is(model: World, now: Now) -> Call:
    now()
    return model


def eval_and_train(model: World, now: Now) -> Call:
    now()
    return model.eval().train()


def train_a_part(model: World, now: Now) -> Call:
    now()
    for module in model.modules():
        module.train()
    return model


def set_directly(model: World, now: Now) -> Call:
    now()
    for module in model.modules():
        module.training = True
    return model


def applied(model: World, now: Now) -> Call:
    now()
    return model.apply(lambda module: module.train(True))


def deepcopied(model: World, now: Now) -> Call:
    now()
    return copy.deepcopy(copy.deepcopy(model))


def pickled(model: World, now: Now) -> Call:
    now()
    return pickle.loads(pickle.dumps(model))


def saved(model: World, now: Now) -> Call:
    now()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded_from_a_plain_one(model: World, now: Now) -> Call:
    now()
    model.load_state_dict(world(0.0, recurrent=model.part.lstm is not None).state_dict(), strict=True)
    return model


def loaded_into_a_plain_one(model: World, now: Now) -> Call:
    now()
    other = world(0.0, recurrent=model.part.lstm is not None)
    other.load_state_dict(model.state_dict(), strict=True)
    return model


def moved(model: World, now: Now) -> Call:
    now()
    return model.to("cpu").to(torch.float64).to(torch.float32)


def reparametrised(model: World, now: Now) -> Call:
    """``functional_call`` with every array given from outside."""
    now()
    given = {path: array for path, array in arrays(model) if path.startswith("part")}
    return lambda x: torch.func.functional_call(model, given, (x,))


def recomputed_reentrantly(model: World, now: Now) -> Call:
    model.recompute = True
    now()
    return model


def recomputed(model: World, now: Now) -> Call:
    model.recompute = False
    now()
    return model


def compiled(model: World, now: Now) -> Call:
    now()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def compiled_and_run_before(model: World, now: Now) -> Call:
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    state = copy.deepcopy(model.state_dict())
    call(inputs()).sum().backward()
    call.eval()(inputs())
    call.train()
    model.load_state_dict(state)
    now()
    return call


def traced(model: World, now: Now) -> Call:
    now()
    return torch.fx.symbolic_trace(model)


def exported(model: World, now: Now) -> Call:
    now()
    return torch.export.export(model, (inputs(),), strict=False).module()


def exported_strictly(model: World, now: Now) -> Call:
    now()
    return torch.export.export(model, (inputs(),), strict=True).module()


def parallel_after(model: World, now: Now) -> Call:
    now()
    return nn.parallel.DistributedDataParallel(model)


def parallel_before(model: World, now: Now) -> Call:
    wrapper = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    now()
    return wrapper


def sharded_after(model: World, now: Now) -> Call:
    now()
    return shard(model)


def sharded_before(model: World, now: Now) -> Call:
    shard(model).eval()(inputs()).sum().backward()
    model.train()
    now()
    return model


def shard(model: World) -> World:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    for part in (model.part.batch, model.part.attention, model.part, model):
        fully_shard(part, mesh=mesh)
    return model


EAGER: list[Callable[[World, Now], Call]] = [
    as_it_is,
    eval_and_train,
    train_a_part,
    set_directly,
    applied,
    deepcopied,
    pickled,
    saved,
    loaded_from_a_plain_one,
    loaded_into_a_plain_one,
    moved,
    reparametrised,
    recomputed,
    recomputed_reentrantly,
]
# Neither compiles, exports nor shards an LSTM: dynamo refuses it, and its flat weights.
WITHOUT_LSTM = [compiled, compiled_and_run_before, traced, exported, exported_strictly, sharded_after, sharded_before]
PARALLEL = [parallel_after, parallel_before]
NOT_PARAMETRIZED = {pickled, saved}  # torch itself pickles no parametrized module
NO_STEP = {exported, exported_strictly}  # the arrays of a program are its own
GROUP = {parallel_after, parallel_before, sharded_after, sharded_before}


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.compiler.reset()
    if request.node.get_closest_marker("parametrize") and request.node.callspec.params.get("do") in GROUP:
        request.getfixturevalue("group")
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "meeting"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def plain(array: torch.Tensor) -> torch.Tensor:
    return (array.full_tensor() if hasattr(array, "full_tensor") else array).detach().clone()


def octets(model: nn.Module) -> dict[str, bytes]:
    return {path: plain(array).contiguous().numpy().tobytes() for path, array in arrays(model)}


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("how", ["norm", "all"])
@pytest.mark.parametrize("do", [*EAGER, *PARALLEL, *WITHOUT_LSTM], ids=lambda do: do.__name__)
@pytest.mark.filterwarnings("ignore:.*find_unused_parameters=True was specified", "ignore:.*barrier")
def test_what_is_frozen_is_held(do: Callable[[World, Now], Call], how: Any, rate: float) -> None:
    model = world(rate, recurrent=do not in WITHOUT_LSTM, parametrized=do not in NOT_PARAMETRIZED)
    expected = copy.deepcopy(model).eval()(inputs()).detach()
    keys = list(model.state_dict())
    call = do(model, lambda: freeze(model, layers="part", inference=how))
    if isinstance(call, nn.Module) and do not in NO_STEP:
        call.train()
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        draws.append(call(inputs()).detach())
    deterministic = how == "all" or rate == 0
    assert torch.equal(*draws) == deterministic
    if deterministic:
        torch.testing.assert_close(draws[0], expected, rtol=1e-5, atol=1e-6)
    trained = bare(call) if isinstance(call, nn.Module) else model
    assert do in NO_STEP or list(trained.state_dict()) == keys
    if do not in NO_STEP:
        step(trained, call)


def bare(call: nn.Module) -> nn.Module:
    return getattr(call, "_orig_mod", getattr(call, "module", call))


def step(model: nn.Module, call: Call) -> None:
    """Three steps of an optimizer over everything: the part keeps still, byte by byte, and the head moves."""
    before = octets(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for seed in range(3):
        optimizer.zero_grad(set_to_none=False)
        call(inputs(seed)).square().sum().backward()
        optimizer.step()
    after = octets(model)
    assert {path for path in after if after[path] != before[path]} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("how", ["norm", "all"])
def test_half_precision(how: Any) -> None:
    model = world(0.0).half()
    twin = copy.deepcopy(model).eval()
    freeze(model, layers="part", inference=how)
    assert torch.equal(model.train()(inputs().half()), twin(inputs().half()))
    model = world(0.0)
    freeze(model, layers="part", inference=how)
    assert torch.equal(model.half().train()(inputs().half()), twin(inputs().half()))


@pytest.mark.parametrize("how", ["norm", "all"])
def test_nothing_else_about_a_module_changes(how: Any) -> None:
    model = world(0.5)
    calls: list[str] = []
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: calls.append(path))
        module.register_forward_pre_hook(lambda *_: None)
    modules = dict(model.named_modules())
    classes = {path: type(module) for path, module in modules.items()}
    looks = repr(model), str(model), list(model.state_dict()), [name for name, _ in model.named_parameters()]
    identities = {path: (id(array), array.data_ptr()) for path, array in arrays(model)}
    hooked = {path: hooks(module) for path, module in modules.items()}
    model(inputs())
    expected, calls[:] = list(calls), []
    freeze(model, layers="part", inference=how)
    assert (repr(model), str(model), list(model.state_dict()), [name for name, _ in model.named_parameters()]) == looks
    assert {path: (id(array), array.data_ptr()) for path, array in arrays(model)} == identities
    assert dict(model.named_modules()) == modules
    for path, module in modules.items():
        cls = classes[path]
        assert isinstance(module, cls)
        assert (type(module).__name__, type(module).__qualname__, type(module).__module__) == (cls.__name__, cls.__qualname__, cls.__module__)
        # What runs in a forward pass is the same code, and nothing is put round it: that is why it costs nothing.
        assert type(module).forward is cls.forward
        assert type(module).__call__ is cls.__call__
        assert type(module).__getattr__ is cls.__getattr__
        assert hooks(module) == hooked[path]
    model(inputs())
    assert calls == expected


@pytest.mark.parametrize("how", ["norm", "all"])
def test_every_module_without_state_is_left_to_its_class_under_norm(how: Any) -> None:
    model = world(0.5)
    held = set(freeze(model, layers="part", inference=how).held)
    stateful = {"part.batch", "part.bare", "part.instance", "part.spectral"}
    every = {path for path, _ in model.named_modules() if path.startswith("part") and "parametrizations" not in path}
    assert held == (stateful if how == "norm" else every)
    assert {path for path, module in model.named_modules() if path in every and not module.training} == held
