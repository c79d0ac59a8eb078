"""PyTorch: what unifreeze can't do is said, loudly or by ``verify()``. The page docs/pytorch.md lists each."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchvision_cpu  # noqa: F401 - timm imports torchvision
from kits.torch import TorchKit, batch, named
from unifreeze import UnifreezeWarning, freeze, layers, summary, unfreeze
from unifreeze.errors import BackendError, FrozenMovedError, NothingSelectedError, UnbuiltModelError, UntrainableError

KIT = TorchKit()


def train(model: nn.Module, steps: int = 1) -> None:
    optimizer = torch.optim.SGD([array for array in model.parameters() if array.requires_grad], lr=0.1)
    for _ in range(steps):
        inputs, targets = batch(model, 0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(inputs), targets).backward()
        optimizer.step()


# TorchScript.


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_held_layer_refuses_torchscript_and_a_released_copy_can_be_scripted() -> None:
    model = KIT.reference()
    freezing = freeze(model, layers="stem")
    with pytest.raises(BackendError, match=r"(?s)BatchNorm2d is held.*unfreeze\(twin\); torch\.jit\.script\(twin\.eval\(\)\)"):
        torch.jit.script(model)
    freezing.verify()
    twin = copy.deepcopy(model)
    unfreeze(twin)
    inputs = batch(model, 0)[0]
    assert torch.equal(torch.jit.script(twin.eval())(inputs), model.eval()(inputs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_keeps_the_held_behaviour() -> None:
    model = KIT.reference().train()
    freezing = freeze(model, inference="all")
    inputs = batch(model, 0)[0]
    traced = torch.jit.trace(model, inputs).train()
    assert torch.equal(traced(inputs), KIT.reference().eval()(inputs))
    freezing.verify()


# What was replaced, converted or added afterwards.


def test_sync_batch_norm_is_found_before_anything_moves() -> None:
    model = KIT.reference()
    freezing = freeze(model, layers="stem")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(FrozenMovedError, match=r"stem\.norm: is no longer held at inference.*converted"):
        freezing.verify(model)
    freeze(model, layers="stem").verify()


REPLACED: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
    "a weighted layer": ("conv", lambda: nn.Conv2d(3, 4, 3, padding=1), r"stem\.conv\.weight: is trainable again"),
    "a normalisation": ("norm", lambda: nn.BatchNorm2d(4), r"stem\.norm\.weight: is trainable again"),
    "by one without parameters": ("conv", nn.Identity, r"stem\.conv\.weight: is gone; was its layer replaced"),
    "by a wrapper of its own": ("conv", lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), r"stem\.conv\.weight: is gone"),
    "frozen by hand": ("conv", lambda: nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False), r"stem\.conv\.weight: moved"),
}


@pytest.mark.parametrize("case", REPLACED)
def test_a_replaced_module_is_found(case: str) -> None:
    name, make, message = REPLACED[case]
    model = KIT.reference()
    freezing = freeze(model, layers="stem")
    setattr(model.stem, name, make())
    with pytest.raises(FrozenMovedError, match=message):
        freezing.verify()


@pytest.mark.parametrize("name", ["drop", "relu"])
def test_a_replaced_module_without_parameters_is_found_under_all(name: str) -> None:
    model = KIT.reference()
    freezing = freeze(model, inference="all")
    owner = model.body if name == "drop" else model
    setattr(owner, name, nn.Dropout(0.5))
    with pytest.raises(FrozenMovedError, match=rf"{name}: is no longer held"):
        freezing.verify()


ADDED: dict[str, tuple[str, Callable[[nn.Module], Any], str]] = {
    "a dense layer": (
        "norm",
        lambda model: model.body.add_module("extra", nn.Linear(6, 6)),
        r"body\.extra\.weight: was added to a frozen part \(body\).*freeze again",
    ),
    "deep inside": (
        "norm",
        lambda model: model.body.layer_1.add_module("lora", nn.Sequential(nn.Linear(4, 1))),
        r"lora\.0\.weight: was added to a frozen part",
    ),
    "a parameter": ("norm", lambda model: model.body.layer_1.register_parameter("gain", nn.Parameter(torch.ones(1))), r"layer_1\.gain: was added"),
    "statistics": ("norm", lambda model: model.body.add_module("extra", nn.BatchNorm1d(6, affine=False)), r"body\.extra: was added to a part that is held"),
    "a dropout under all": ("all", lambda model: model.body.add_module("extra", nn.Dropout(0.5)), r"body\.extra: was added to a part that is held"),
}


@pytest.mark.parametrize("case", ADDED)
def test_what_is_added_to_a_frozen_part_is_found(case: str) -> None:
    how, add, message = ADDED[case]
    model = KIT.reference()
    freezing = freeze(model, layers="body", inference=how)
    freezing.verify()
    add(model)
    with pytest.raises(FrozenMovedError, match=message):
        freezing.verify()
    freeze(model, layers="body", inference=how).verify()


def test_what_is_added_beside_a_frozen_part_is_nobodys_business() -> None:
    model = KIT.reference()
    freezing = freeze(model, layers="body")
    model.add_module("more", nn.Linear(3, 3))
    model.add_module("norm", nn.BatchNorm1d(3))
    model.stem.add_module("more", nn.Dropout(0.5))
    freezing.verify()
    freezing = freeze(model)
    model.add_module("last", nn.Linear(3, 3))
    with pytest.raises(FrozenMovedError, match=r"last\.weight: was added to a frozen part \(the model\)"):
        freezing.verify()
    unfreeze(model, layers="last").verify()


# Reentrant checkpointing.


def vision(*, reentrant: bool) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
    model = ViTForImageClassification(ViTConfig(**sizes, attn_implementation="eager"))
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    return model.train()


def timm_vision(*, reentrant: bool) -> nn.Module:
    import timm

    timm.layers.config.set_reentrant_ckpt(reentrant)
    model = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=2)
    model.set_grad_checkpointing()
    return model.train()


def wrapped(*, reentrant: bool) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

    impl = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    blocks = [checkpoint_wrapper(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), checkpoint_impl=impl) for _ in range(2)]
    return named(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), embeddings=nn.Linear(3, 3), blocks=nn.Sequential(*blocks), head=nn.Linear(3, 2))


# How to make it, its first layers, and a late one.
CHECKPOINTED: dict[str, tuple[Callable[..., nn.Module], Callable[[Any], list[nn.Module]], str]] = {
    "transformers": (vision, lambda model: [model.vit.embeddings], "vit.layernorm"),
    "timm": (timm_vision, lambda model: [model.patch_embed, model], "norm"),
    "torch.distributed": (wrapped, lambda model: [model.embeddings], "head"),
}


@pytest.fixture(params=CHECKPOINTED)
def checkpointed(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield CHECKPOINTED[request.param]
    if request.param == "timm":
        import timm

        timm.layers.config.set_reentrant_ckpt(False)


def freeze_beginning(model: nn.Module, early: Callable[[nn.Module], list[nn.Module]]) -> Any:
    own = {id(array) for part in early(model) for array in part.parameters(recurse=part is not model)}
    return freeze(model, params=lambda parameter: id(parameter.array) in own)


def backward(model: nn.Module) -> set[str]:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, which this is about
        (result if isinstance(result, torch.Tensor) else result.logits).square().sum().backward()
    return {name for name, array in model.named_parameters() if array.grad is not None}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_behind_a_frozen_beginning_is_announced(checkpointed: Any) -> None:
    make, early, late = checkpointed
    model = make(reentrant=True)
    with pytest.warns(UnifreezeWarning, match=r"(?s)Reentrant checkpointing gives no gradient.*first: .*use_reentrant=False"):
        freezing = freeze_beginning(model, early)
    freezing.verify()  # nothing was lost yet
    alive = backward(model)
    assert any(late in name for name in alive)
    assert set(freezing.trainable) - alive, "gradients live, so the warning is wrong"
    with pytest.raises(FrozenMovedError, match="is trainable and gets no gradient: reentrant checkpointing"):
        freezing.verify()


def test_what_keeps_gradients_alive_is_not_warned_of(checkpointed: Any) -> None:
    make, early, late = checkpointed
    model = make(reentrant=False)
    freezing = freeze_beginning(model, early)
    assert backward(model) == set(freezing.trainable)
    freezing.verify()
    model = make(reentrant=True)
    freezing = freeze(model, layers=[model.get_submodule(late)])
    assert backward(model) == set(freezing.trainable)
    freezing.verify()


def test_reentrant_checkpointing_switched_on_after_the_freeze_is_found_by_verify() -> None:
    model = vision(reentrant=False)
    freezing = freeze(model, layers="vit.embeddings.**")
    model.activation_checkpointing_enable({"use_reentrant": True})
    backward(model)
    with pytest.raises(FrozenMovedError, match=r"vit.*is trainable and gets no gradient"):
        freezing.verify()


def test_transformers_keeps_gradients_of_text_models_alive_by_a_hook() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
    model = BertForSequenceClassification(BertConfig(**sizes)).train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    freezing = freeze(model, layers="bert.embeddings")
    model(input_ids=torch.randint(0, 20, (2, 6)), labels=torch.tensor([0, 1])).loss.backward()
    assert {name for name, array in model.named_parameters() if array.grad is not None} == set(freezing.trainable)
    freezing.verify()


# Parameters without gradients, and without values.


class Params4bit(nn.Parameter):
    """As bitsandbytes keeps four-bit weights: two in a byte, in a parameter of a class of its own."""

    def __new__(cls, data: torch.Tensor) -> Self:
        return torch.Tensor._make_subclass(cls, data, False)


@pytest.mark.parametrize(("make", "dtype"), [(nn.Parameter, torch.int8), (Params4bit, torch.uint8)])
def test_quantised_parameters_are_skipped_and_said(make: Any, dtype: torch.dtype) -> None:
    model = named(base=nn.Linear(4, 4), head=nn.Linear(4, 2))
    packed = torch.arange(16).reshape(4, 4).to(dtype)
    model.base.weight = make(packed, requires_grad=False) if make is nn.Parameter else make(packed)
    freezing = freeze(model, layers="base")
    assert freezing.frozen == ("base.weight", "base.bias")
    kind = str(dtype).removeprefix("torch.")
    with pytest.warns(UnifreezeWarning, match=rf"base\.weight \({kind} has no gradient\)"):
        freezing = unfreeze(model)
    assert freezing.skipped == {"base.weight": f"{kind} has no gradient"}
    with pytest.raises(UntrainableError, match=f"{kind} has no gradient"):
        unfreeze(model, params="base.weight")
    assert summary(model).totals.frozen == 16
    freezing = freeze(model, layers="base")
    model.base.weight.data[3, 3] += 1
    with pytest.raises(FrozenMovedError, match=r"base\.weight: moved"):
        freezing.verify()


@pytest.mark.filterwarnings("ignore")
def test_a_dynamically_quantised_layer_has_no_parameters_to_freeze() -> None:
    torch.backends.quantized.engine = next(engine for engine in torch.backends.quantized.supported_engines if engine != "none")
    model = torch.ao.quantization.quantize_dynamic(named(base=nn.Linear(4, 4), head=nn.LayerNorm(4)), {nn.Linear})
    with pytest.raises(NothingSelectedError, match="without parameters or buffers"):
        freeze(model, layers="base")
    assert [layer.path for layer in layers(model)] == ["head"]


@pytest.mark.parametrize("verb", [freeze, unfreeze, summary, layers])
def test_lazy_modules_are_refused_by_every_verb(verb: Callable[..., Any]) -> None:
    model = named(stem=nn.Linear(3, 3), lazy=nn.LazyLinear(2))
    with pytest.raises(UnbuiltModelError, match=r"(?s)LazyLinear at 'lazy' is not built yet.*Run the model once"):
        verb(model)


@pytest.mark.parametrize("assign", [True, False])
def test_meta_modules_are_frozen_and_verified_once_they_have_values(assign: bool) -> None:
    with torch.device("meta"):
        model = KIT.reference()
    freezing = freeze(model, layers="stem", inference="all")
    with pytest.raises(BackendError, match=r"(?s)not known at the call.*remember"):
        freezing.verify()
    if not assign:
        model.to_empty(device="cpu")
    model.load_state_dict(KIT.reference().state_dict(), assign=assign)
    freezing = freezing.remember(model)
    train(model, 2)
    freezing.verify()
    model.stem.norm.running_mean.add_(1)
    with pytest.raises(FrozenMovedError, match=r"stem\.norm\.running_mean: moved"):
        freezing.verify()
    model.stem.norm.weight.data.add_(1)
    with pytest.raises(FrozenMovedError) as caught:
        freezing.verify()
    causes = {move.path: move.cause for move in caught.value.moves}
    assert causes["stem.norm.weight"] != "replaced", "it is the array that was remembered"


# A wrapper that was not given.


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "meeting"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_wrapper_refuses_to_train_what_was_unfrozen_behind_its_back() -> None:
    model = KIT.reference()
    freeze(model, layers="stem")
    wrapper = DistributedDataParallel(model)
    train(wrapper.module)
    freezing = unfreeze(wrapper.module, layers="stem")
    inputs = batch(model, 0)[0]
    with pytest.raises(BackendError, match=r"(?s)made before.*stem\.conv\.weight is trainable and is not averaged.*Wrap the model again"):
        wrapper(inputs)
    with torch.no_grad():
        wrapper(inputs)
    again = DistributedDataParallel(wrapper.module)
    again(inputs).sum().backward()
    freezing.undo()
    wrapper(inputs).sum().backward()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("find_unused", [True, False])
def test_a_wrapper_refuses_to_wait_for_what_was_frozen_behind_its_back(find_unused: bool) -> None:
    model = KIT.reference()
    wrapper = DistributedDataParallel(model, find_unused_parameters=find_unused)
    inputs = batch(model, 0)[0]
    wrapper(inputs).sum().backward()
    freezing = freeze(model, layers="stem")
    for _ in range(2):
        if find_unused:
            wrapper(inputs).sum().backward()
        else:
            with pytest.raises(BackendError, match="waits for the gradients of what is frozen"):
                wrapper(inputs)
    freezing.undo()
    wrapper(inputs).sum().backward()


def test_the_page_lists_each() -> None:
    page = (Path(__file__).parents[1] / "docs" / "pytorch.md").read_text()
    words = ["TorchScript", "convert_sync_batchnorm", "replaced", "added", "use_reentrant", "recompile_limit", "int8", "4-bit", "lazy", "meta", "ddp.module"]
    assert [word for word in words if word not in page] == []
