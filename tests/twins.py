"""The twins of the Keras models that recipes are written for, and eyes that tell by values alone which weight went where."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import keras
import numpy as np
import torch
from torch import nn

#: Recipe by its name in ``keras_recipes``: the phase that is checked most closely, the torchvision twin, what it is built with, and the shape of the input.
TWINS = {
    "1 transfer-learning guide": (0, "mobilenet_v2", {"num_classes": 1}, None),
    "2 transfer-learning tutorial": (1, "mobilenet_v2", {"num_classes": 1}, None),
    "3 applications page": (1, "inception_v3", {"init_weights": False}, (1, 139, 139, 3)),
    "4 Chollet, first edition": (1, "vgg16", {}, None),
    "5 Chollet, second edition": (0, "vgg16", {}, None),
    "6 EfficientNet fine-tuning": (1, "efficientnet_b0", {"num_classes": 10}, None),
    "8 siamese network": (0, "resnet50", {}, None),
    "14 segmentation_models": (0, "resnet50", {}, None),
    "15 keras-yolo3": (0, "mobilenet_v2", {}, None),
    "17 supervised contrastive learning": (0, "mobilenet_v2", {"num_classes": 10}, None),
    "18 an outer flag": (0, "mobilenet_v2", {}, None),
}


def twin(name: str, **more: Any) -> nn.Module:
    import torchvision_cpu  # noqa: F401

    return getattr(import_module("torchvision.models"), name)(**more)


def randomised(model: Any, seed: int = 0) -> Any:
    """Every array gets values of its own, such that activations stay of order one and the output depends on the input; inputs are not rescaled."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        name, shape = variable.path.rpartition("/")[2], variable.shape
        if name in {"gamma", "moving_variance"}:
            variable.assign(rng.uniform(0.8, 1.2, shape))
        elif name in {"beta", "bias", "moving_mean"}:
            variable.assign(rng.uniform(-0.1, 0.1, shape))
        elif name.endswith("kernel") and len(shape) > 1:
            fan = np.prod(shape[:2] if name.startswith("depthwise") or (len(shape) == 4 and shape[3] == 1) else shape[:-1])
            variable.assign(rng.standard_normal(shape, dtype="float32") * np.float32(np.sqrt(2 / fan)))
        elif len(shape) == 1 and name not in {"mean", "variance"} and "seed" not in variable.path:
            # A scale of a whole branch, which begins at 1e-6: nothing in that branch would show.
            variable.assign(rng.uniform(0.8, 1.2, shape))
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Rescaling):
            layer.scale, layer.offset = 1.0, 0.0
    return model


def calibrated(model: Any, shape: tuple[int, ...]) -> Any:
    """Gives batch normalisations the statistics of random images, so that a signal reaches the end of a deep network, whatever trains."""
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    before = [(layer._trainable, layer.momentum) for layer in norms]
    for layer in norms:
        layer._trainable, layer.momentum = True, 0.0
    model(images(shape, seed=2), training=True)
    for layer, (flag, momentum) in zip(norms, before, strict=True):
        layer._trainable, layer.momentum = flag, momentum
    return model


def torch_randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Vectors get values of their own, and so does what is initialised with zeros; other kernels keep what they were initialised with."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            near_one = name.endswith(("weight", "var"))
            if tensor.ndim == 1:
                tensor.copy_(torch.from_numpy(rng.uniform(0.8, 1.2, tensor.shape) if near_one else rng.uniform(-0.1, 0.1, tensor.shape)))
            elif tensor.ndim > 1 and not tensor.any():
                tensor.copy_(torch.from_numpy(rng.normal(0, 0.1, tensor.shape)))
    return model


def torch_calibrated(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """As ``calibrated``, for PyTorch."""
    norms = [module for module in model.eval().modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    torch_output(model, images(shape, seed=2))
    for norm, momentum in zip(norms, before, strict=True):
        norm.eval().momentum = momentum
    return model


def images(shape: tuple[int, ...], seed: int = 1) -> Any:
    """Always as many, since Keras on JAX compiles each operation anew for each size of a batch."""
    return np.random.default_rng(seed).normal(size=(8, *shape[1:])).astype("float32")


def keras_output(model: Any, x: Any) -> Any:
    return keras.ops.convert_to_numpy(model(x, training=False))


def torch_output(model: nn.Module, x: Any) -> Any:
    """What a module computes from numbers with channels last."""
    with torch.no_grad():
        return model(torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if x.ndim > 3 else x))).numpy()


def apart(expected: Any, got: Any) -> float:
    """The largest difference relative to the largest value. Agreement says something only where the output depends on the input, which is checked."""
    scale = np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * scale, "the output hardly depends on the input, so that agreement proves nothing"
    return float(np.abs(got - expected).max() / scale)


def unseen(model: nn.Module, x: Any, limit: float) -> list[str]:
    """The arrays of a module whose values could be in the wrong order without a difference of the outputs above the limit."""
    expected = torch_output(model, x)
    found = []
    for name, array in model.state_dict().items():
        right = array.clone()
        array.copy_(right.flip(0))
        if not torch.equal(array, right) and not apart(expected, torch_output(model, x)) > limit:
            found.append(name)
        array.copy_(right)
    return found


def undoubled(plan: list[Any]) -> list[Any]:
    """The plan of a random network without ``x + x`` and ``x * x``: they are activations, of which a certificate does not speak."""
    return [("one" if how in {"sum", "mul"} and a == b else how, (a, b), *rest) for how, (a, b), *rest in plan]


def values(array: Any) -> bytes:
    """What an array holds whatever its layout: its values in the order of their size."""
    return np.sort(np.asarray(array, "float32"), axis=None).tobytes()


def by_values(model: Any) -> dict[bytes, Any]:
    """The variables of a Keras model by their values, no two alike."""
    every = [variable for variable in model.variables if np.issubdtype(np.dtype(variable.dtype), np.floating)]
    found = {values(keras.ops.convert_to_numpy(variable.value)): variable for variable in every}
    assert len(found) == len(every)
    return found


#: The module whose output is the feature map that Keras gives without its top.
BODIES = {"vgg16": "features", "mobilenet_v2": "features", "efficientnet_b0": "features", "resnet50": "layer4", "inception_v3": "Mixed_7c"}


def set_alike(model: nn.Module, found: Any, monkeypatch: Any, side: int = 1) -> None:
    """What the frameworks do differently and no weight decides: epsilons, where ResNet50 has its strides, pools that count their padding, and the side that an
    even input is padded on. The model is the target, or on side 0 the source."""
    modules = dict(model.named_modules())
    for difference in found.differences:
        path, setting, value = difference[side], difference[2], difference[4 - side]
        if setting in {"epsilon", "stride"}:
            setattr(modules[path], {"epsilon": "eps"}.get(setting, setting), value)
    pool = nn.functional.avg_pool2d
    monkeypatch.setattr(nn.functional, "avg_pool2d", lambda x, *args, **kw: pool(x, *args[:4], **(kw | {"count_include_pad": False})))
    for module in modules.values():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.padding != (0, 0) and module.kernel_size[0] < 7:
            monkeypatch.setattr(module, "_conv_forward", partial(padded_as_keras, module))


def padded_as_keras(conv: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
    """Keras pads an even input on one side less."""
    half = conv.padding[0]
    left = [half - (1 - size % 2) for size in (x.shape[-1], x.shape[-2])]
    return nn.functional.conv2d(nn.functional.pad(x, (left[0], half, left[1], half)), weight, bias, conv.stride, 0, conv.dilation, conv.groups)


def keras_features(model: Any, x: Any) -> Any:
    """What a Keras model computes below its top, with channels last."""
    inner = next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)
    pooled = next((layer for layer in reversed(model.layers) if isinstance(layer, keras.layers.GlobalAveragePooling2D)), None)
    body = inner or (keras.Model(model.input, pooled.input) if pooled else model)
    # An encoder with its own pooling, or a head that is flattened.
    *_, last = [layer for layer in body.layers if len(getattr(layer, "output", x).shape) == 4]
    body = keras.Model(body.input, last.output)
    return keras.ops.convert_to_numpy(body(x, training=False))


def torch_features(model: nn.Module, body: str, x: Any) -> Any:
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(body).register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        model.eval()(torch.from_numpy(x).permute(0, 3, 1, 2))
    handle.remove()
    return seen[0].permute(0, 2, 3, 1).numpy()


def keras_layers(model: Any) -> list[Any]:
    return list(model._flatten_layers(include_self=True))


def thawed(model: Any) -> Any:
    """All flags up, one by one."""
    for layer in keras_layers(model):
        layer.trainable = True
    return model


def bytes_of(model: nn.Module) -> dict[str, bytes]:
    return {name: array.detach().numpy().tobytes() for name, array in model.state_dict().items()}


def trained(model: nn.Module, x: torch.Tensor) -> None:
    """Two real steps on all parameters, with momentum and decay."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model.train()
    for _ in range(2):
        out = model(x)
        outs = out if isinstance(out, tuple) else (out,)
        optimizer.zero_grad()
        loss = sum((one**2).mean() for one in outs)
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
