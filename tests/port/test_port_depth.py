"""Models of one family and another depth: what has a certain meaning is ported, and nothing is guessed; a refused port has changed nothing."""

from __future__ import annotations

from typing import Any

import keras
import pytest
import torch
from torch import nn

import twins
from unifreeze import errors, freeze, port

L = keras.layers


def ours(blocks: tuple[int, ...] = (1, 2, 2)) -> Any:
    """Stages of residual blocks; each stage doubles the channels, as in a ResNet."""
    x = image = keras.Input((9, 9, 3))
    for stage, count in enumerate(blocks):
        for block in range(count):
            width, name = 4 * 2**stage, f"s{stage}b{block}"
            y = L.ReLU()(L.BatchNormalization(name=f"{name}_bn")(L.Conv2D(width, 3, padding="same", name=f"{name}_conv")(x)))
            x = L.Add()([x, y]) if block else y
    return keras.Model(image, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))


class Theirs(nn.Module):
    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks, before = blocks, 3
        for stage, count in enumerate(blocks):
            for block in range(count):
                width = 4 * 2**stage
                self.add_module(f"s{stage}b{block}", nn.ModuleDict({"conv": nn.Conv2d(before, width, 3, padding=1), "bn": nn.BatchNorm2d(width)}))
                before = width
        self.fc = nn.Linear(before, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                both: Any = getattr(self, f"s{stage}b{block}")
                y = both["bn"](both["conv"](x)).relu()
                x = x + y if block else y
        return self.fc(x.mean((2, 3)))


def frozen(model: nn.Module) -> set[str]:
    return {name.rpartition(".")[0] for name, p in model.named_parameters() if not p.requires_grad}


def untouched(model: nn.Module) -> tuple[Any, ...]:
    flags = [(p.requires_grad, None if p.grad is None else p.grad.numpy().tobytes()) for p in model.parameters()]
    return twins.bytes_of(model), flags, [(module.training, type(module)) for module in model.modules()]


DEEPER = (1, 4, 2)


def test_stages_before_the_models_part_ways_are_ported() -> None:
    theirs = Theirs(DEEPER)
    done = port({"steps": [{"freeze": "s0b0_*"}]}, ours(), theirs)
    assert done.correspondence.certificate == "prefix"
    assert frozen(theirs) == {"s0b0.conv", "s0b0.bn"}
    assert done.freezing.held == ("s0b0.bn",)
    assert done.frozen[0] == done.frozen[1]
    assert "s1b2.conv: only in the target, left trainable" in done.notes
    assert "first without a partner in the target: s1b2.conv" in str(done)


@pytest.mark.parametrize("layers", ["s0b0_* | s1b0_* | s1b1_*", "s1b1_*", "before:s2b0_conv", "**"])
def test_what_one_model_repeats_more_often_is_refused_and_nothing_has_changed(layers: str) -> None:
    theirs = Theirs(DEEPER)
    freeze(theirs, "fc")
    theirs(torch.randn(1, 3, 9, 9)).sum().backward()
    before = untouched(theirs)
    with pytest.raises(errors.CorrespondenceError, match="partly=True"):
        port({"steps": [{"freeze": layers}]}, ours(), theirs)
    assert untouched(theirs) == before


@pytest.mark.parametrize(("source", "target"), [((1, 2, 2), DEEPER), (DEEPER, (1, 2, 2))])
def test_partly_ends_with_the_last_stage_that_both_have_and_says_what_was_left(source: Any, target: Any) -> None:
    theirs = Theirs(target)
    done = port({"steps": [{"freeze": "before:s2b0_conv"}]}, ours(source), theirs, partly=True)
    assert frozen(theirs) == {"s0b0.conv", "s0b0.bn"}
    left = {note.partition(":")[0] for note in done.notes if "left out" in note}
    assert left == {f"s1b{block}_{what}" for block in range(source[1]) for what in ("conv.kernel", "conv.bias", "bn.gamma", "bn.beta")}
    assert "left out" in done.to_markdown()
    assert done.to_dict()["notes"] == list(done.notes)


def test_a_head_of_another_size_that_is_frozen_is_refused_or_left() -> None:
    source, theirs = ours(), Theirs((1, 2, 2))
    theirs.fc = nn.Linear(16, 3)
    before = untouched(theirs)
    with pytest.raises(errors.CorrespondenceError, match="head.kernel"):
        port({"steps": [{"freeze": "**"}]}, source, theirs)
    assert untouched(theirs) == before
    assert port({"steps": [{"freeze": "**"}]}, source, theirs, partly=True).freezing.trainable == ("fc.weight", "fc.bias")


def test_a_layer_that_inference_does_not_use_is_named() -> None:
    source = Theirs((1, 1))
    source.aux = nn.Linear(3, 3)
    theirs = ours((1, 1))
    done = port({"steps": [{"freeze": "~fc"}]}, source, theirs, shape=(1, 9, 9, 3))
    assert [v.path for v in theirs.trainable_variables] == ["head/kernel", "head/bias"]
    assert any(note.startswith("aux.weight") and "inference does not use" in note for note in done.notes)
    assert done.frozen[0] - done.frozen[1] == 12


def test_statistics_without_parameters_are_held_in_the_target() -> None:
    """A frozen normalisation without scale and shift has nothing to freeze but its statistics."""
    image = keras.Input((9, 9, 3))
    norm = L.BatchNormalization(center=False, scale=False, name="norm")
    source = keras.Model(image, L.Dense(2)(L.GlobalAveragePooling2D()(norm(L.Conv2D(4, 3)(image)))))
    norm.trainable = False
    for affine in (False, True):
        theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        done = port(None, source, theirs)
        before = twins.bytes_of(theirs)
        twins.trained(theirs, torch.randn(4, 3, 9, 9))
        assert {name for name, now in twins.bytes_of(theirs).items() if before[name] == now} >= {"1.running_mean", "1.running_var"}
        assert done.freezing.held == ("1",)
        assert done.freezing.frozen == (("1.weight", "1.bias") if affine else ())


def test_rows_are_refused() -> None:
    source = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    freeze(source, "0", params="kernel", rows=[0])
    theirs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(errors.CorrespondenceError, match="rows"):
        port(None, source, theirs, shape=(1, 3))
    assert all(p.requires_grad for p in theirs.parameters())


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.qkv = nn.Linear(4, 4), nn.Linear(4, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("layers", ["q", "q | k", "~q", "v"])
def test_a_freeze_that_covers_a_fused_parameter_by_halves_is_refused_and_nothing_has_changed(layers: str) -> None:
    theirs = Fused()
    freeze(theirs, "head")
    before = untouched(theirs)
    with pytest.raises(errors.CorrespondenceError, match="by halves"):
        port({"steps": [{"freeze": layers}]}, Apart(), theirs, shape=(1, 3, 4))
    assert untouched(theirs) == before


def test_all_parts_of_a_fused_parameter_go_together_in_both_directions() -> None:
    source, theirs = Apart(), Fused()
    done = port({"steps": [{"freeze": "q | k | v"}]}, source, theirs, shape=(1, 3, 4))
    assert frozen(theirs) == {"qkv"}
    assert done.frozen == (60, 60)
    assert port(None, theirs, source, shape=(1, 3, 4)).frozen == (60, 60)
    assert frozen(source) == {"q", "k", "v"}


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "shallow", "deep", "layers", "expected"),
    [
        ("ResNet50", "resnet50", "resnet101", "before:conv4_block1_1_conv", ("conv1", "bn1", "layer1", "layer2")),
        ("VGG16", "vgg16", "vgg19", "upto:block2_pool", ("features.0", "features.2", "features.5", "features.7")),
    ],
)
def test_the_zoos_own_depths(name: str, shallow: str, deep: str, layers: str, expected: tuple[str, ...]) -> None:
    source = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(64, 64, 3))
    twin, theirs = twins.twin(shallow), twins.twin(deep)
    port({"steps": [{"freeze": layers}]}, source, twin)
    port({"steps": [{"freeze": layers}]}, source, theirs)
    chosen = {path for path, _ in theirs.named_parameters() if any(path.startswith(f"{root}.") for root in expected)}
    assert {path for path, p in theirs.named_parameters() if not p.requires_grad} == chosen
    assert {path for path, p in twin.named_parameters() if not p.requires_grad} == chosen
    with pytest.raises(errors.CorrespondenceError):
        port({"steps": [{"freeze": "**"}]}, source, theirs)
