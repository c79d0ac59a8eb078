"""Output shapes of modules, from one run in inference on fake tensors: nothing is allocated, nothing computed, and every module is afterwards as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook

from unifreeze.plugin import BackendError, Inputs, Layer, Shape, Spec

from .pin import asked
from .wrappers import unwrapped


def output_shapes(model: nn.Module, tree: Layer, inputs: Inputs) -> Mapping[str, Shape]:
    """Runs the module on fake tensors and notes the shape of what each module returns first.

    Raises:
        BackendError: If it can't be run so.
    """
    root = unwrapped(model)
    paths: dict[int, list[str]] = {}
    for layer in tree.walk():
        for native in {id(layer.native), id(unwrapped(layer.native))} if isinstance(layer.native, nn.Module) else ():
            paths.setdefault(native, []).append(layer.path)
    found: dict[str, Shape] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        first = next(_tensors(output), None)
        for path in paths.get(id(module), ()) if first is not None else ():
            found.setdefault(path, tuple(map(int, first.shape)))

    try:
        with _as_it_was(root), FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), _eager():
            _infer(root)
            arrays = _stand_ins(root, fake)
            args, kwargs = inputs.mapped(lambda value: _fake(value, fake, root))
            with _noting(note):
                torch.func.functional_call(root, arrays, args, kwargs)
    except Exception as error:
        raise BackendError(_refusal(model, error)) from error
    return found


def _refusal(model: nn.Module, error: Exception) -> str:
    what = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"{type(model).__name__} can't be run on these inputs without computing anything.\n  {type(error).__name__}: {what[:300]}\n"
        "  Give inputs= as its forward takes them: a tensor, a tuple, or a dict of named ones (tensors on the meta device will do); "
        "a model that looks at values can't be run on shapes."
    )


@contextmanager
def _noting(note: Any) -> Iterator[None]:
    """One hook for all modules, so that none of them has one of its own to take off."""
    handle = register_module_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _eager() -> Iterator[None]:
    """A compiled module runs its own code here: a compiler would keep what it made of fakes."""
    stance: Any = getattr(torch.compiler, "set_stance", None)
    with stance("force_eager") if stance else contextlib.nullcontext():
        yield


def _infer(root: nn.Module) -> None:
    """Puts every module in inference, past an ``eval`` of its own."""
    for module in root.modules():
        if asked(module):
            object.__setattr__(module, "training", False)


@contextmanager
def _as_it_was(root: nn.Module) -> Iterator[None]:
    """Restores what the modules hold, also what a forward pass writes to them, and the random state."""
    modules = list(root.modules())
    kept = [(module.__dict__, dict(module.__dict__), _contents(module.__dict__)) for module in modules]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for own, before, contents in kept:
                own.clear()
                own.update(before)
                for container, inside in contents:
                    container.clear()
                    (container.extend if isinstance(container, list) else container.update)(inside)


def _contents(own: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """The lists, sets and dicts that a module holds, and what is in them; its parameters, buffers and children among them."""
    return [(value, type(value)(value)) for value in own.values() if type(value) in {list, set, dict}]


def _stand_ins(root: nn.Module, fake: FakeTensorMode) -> dict[str, Any]:
    """A fake for each parameter and buffer, one for a shared one. What is on the meta device gets one that says it were on the CPU, as new tensors are."""
    made: dict[int, Any] = {}
    named = (*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False))
    for _, tensor in named:
        if id(tensor) not in made:
            made[id(tensor)] = _empty(tensor, tensor.device, fake) if tensor.device.type == "meta" else fake.from_tensor(tensor)
    return {name: made[id(tensor)] for name, tensor in named}


def _empty(like: torch.Tensor, device: torch.device, fake: FakeTensorMode) -> torch.Tensor:
    with fake:
        return torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, device="cpu" if device.type == "meta" else device)


def _fake(value: Any, fake: FakeTensorMode, root: nn.Module) -> Any:
    """A fake input, on the device of the parameters."""
    first = next((p for p in root.parameters()), None)
    device = torch.device("cpu") if first is None or first.device.type == "meta" else first.device
    if isinstance(value, Spec):
        floating = next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.get_default_dtype())
        with fake:
            return torch.empty(value.shape, dtype=torch.int64 if value.whole else floating, device=device)
    if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
        return _empty(value, device if value.device.type == "meta" else value.device, fake)
    return value


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """The tensors of an output in their order, also in dataclasses and the outputs of transformers, which are dicts."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for one in output.values():
            yield from _tensors(one)
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _tensors(one)
    elif hasattr(output, "__dataclass_fields__"):
        for name in output.__dataclass_fields__:
            yield from _tensors(getattr(output, name))
