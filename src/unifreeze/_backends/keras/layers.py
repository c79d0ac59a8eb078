"""What each layer of Keras does, in the language that all tracers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import keras

from unifreeze.plugin import BackendError, Tracing, flow

from .operations import spelt

L = keras.layers
Of = Callable[[Any], Any]
Handler = Callable[[Tracing, Any, Sequence[Any], Of], Any]
_NAMES = (
    "InputLayer Activation ReLU LeakyReLU ELU Softmax Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianNoise GaussianDropout AlphaDropout "
    "ActivityRegularization Identity ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D UpSampling1D UpSampling2D UpSampling3D "
    "Rescaling Normalization UnitNormalization Resizing Masking"
)
PLAIN = tuple(getattr(L, name) for name in dir(L) if name in _NAMES.split() or ("Pooling" in name and not name.startswith("Base")))
WORDS = {L.Add: "+", L.Average: "+", L.Subtract: "-", L.Multiply: "*", L.Maximum: "max", L.Minimum: "min"}


def plain(_: Tracing, op: Any, given: Sequence[Any], __: Of) -> Any:
    """A layer without weights that leaves channels alone."""
    (value,) = given[:1]
    if hasattr(op, "data_format"):
        need_channels_last(op)
    shape = tuple(op.compute_output_shape(value.shape))
    if len(shape) == len(value.shape):
        return flow.resized(value, shape)
    return flow.reduced(value, range(1, len(value.shape) - 1), keep=False)


def need_channels_last(op: Any) -> None:
    """Refuses channels first."""
    if op.data_format not in {"channels_last", None}:
        raise BackendError(
            f"{type(op).__name__} {op.name!r} has channels first, which unifreeze can't trace.\n  Build the model with data_format='channels_last'."
        )


def _dense(tracing: Tracing, op: Any, given: Sequence[Any], of: Of) -> Any:
    _refuse_adapters(tracing, op)
    return tracing.linear(given[0], of(op.kernel), None if op.bias is None else of(op.bias))


def _refuse_adapters(tracing: Tracing, op: Any) -> None:
    if getattr(op, "lora_enabled", False) or getattr(op, "quantization_mode", None):
        raise tracing.refusal(f"{type(op).__name__} {op.name!r}, which has an adapter or is quantized,")


def _einsum_dense(tracing: Tracing, op: Any, given: Sequence[Any], of: Of) -> Any:
    _refuse_adapters(tracing, op)
    kernel = of(op.kernel)
    found = tracing.einsum(spelt(op.equation, len(given[0].axes), len(kernel.axes)), given[0], kernel)
    return found if op.bias is None else tracing.elementwise("+", found, of(op.bias))


def _overlaps(op: Any, before: Sequence[int], after: Sequence[int], window: Sequence[int]) -> bool:
    for size, step, wide, found in zip(window, op.strides, before, after, strict=True):
        pad = max((found - 1) * step + size - wide, 0) if op.padding == "same" else 0
        if size > 1 and (pad or op.padding == "causal" or (step < size and not (found == 1 and wide == size))):
            return True
    return False


def _conv(tracing: Tracing, op: Any, given: Sequence[Any], of: Of) -> Any:
    need_channels_last(op)
    _refuse_adapters(tracing, op)
    return _convolved(tracing, op, given[0], of(op.kernel), of, groups=op.groups)


def _convolved(tracing: Tracing, op: Any, x: Any, kernel: Any, of: Of, *, groups: int) -> Any:
    out = tuple(op.compute_output_shape(x.shape))
    rank = len(kernel.axes)
    settings = {"stride": tuple(op.strides), "padding": op.padding, "dilation": tuple(op.dilation_rate)}
    overlaps = _overlaps(op, x.shape[1:-1], out[1:-1], kernel.shape[:-2])
    found = tracing.convolution(x, kernel, out, axes=(rank - 1, rank - 2, rank - 1), groups=groups, overlaps=overlaps, **settings)
    return _biased(tracing, op, found, of)


def _biased(tracing: Tracing, op: Any, value: Any, of: Of) -> Any:
    return value if op.bias is None else tracing.channelwise("bias", value, [len(value.axes) - 1], {"bias": of(op.bias)})


def _depthwise(tracing: Tracing, op: Any, given: Sequence[Any], of: Of) -> Any:
    need_channels_last(op)
    kernel = of(op.kernel)
    *window, channels, multiplier = kernel.shape
    return _convolved(tracing, op, given[0], flow.reshaped(kernel, (*window, 1, channels * multiplier)), of, groups=channels)


def _separable(tracing: Tracing, op: Any, given: Sequence[Any], of: Of) -> Any:
    need_channels_last(op)
    x, depth, point = given[0], of(op.depthwise_kernel), of(op.pointwise_kernel)
    *window, channels, multiplier = depth.shape
    out = tuple(op.compute_output_shape(x.shape))
    rank = len(depth.axes)
    depth = flow.reshaped(depth, (*window, 1, channels * multiplier))
    settings = {"stride": tuple(op.strides), "padding": op.padding, "dilation": tuple(op.dilation_rate)}
    middle = (*out[:-1], channels * multiplier)
    inner = tracing.convolution(x, depth, middle, axes=(rank - 1, rank - 2, rank - 1), groups=channels, **settings)
    found = tracing.convolution(inner, point, out, axes=(rank - 1, rank - 2, rank - 1), overlaps=False)
    return _biased(tracing, op, found, of)


def _transposed(tracing: Tracing, op: Any, given: Sequence[Any], of: Of) -> Any:
    need_channels_last(op)
    x, kernel = given[0], of(op.kernel)
    rank = len(kernel.axes)
    settings = {"stride": tuple(op.strides), "padding": op.padding, "dilation": tuple(op.dilation_rate)}
    out = tuple(op.compute_output_shape(x.shape))
    found = tracing.convolution(x, kernel, out, axes=(rank - 1, rank - 1, rank - 2), transposed=True, **settings)
    return _biased(tracing, op, found, of)


def _batch_norm(tracing: Tracing, op: Any, given: Sequence[Any], of: Of) -> Any:
    names = {"scale": op.gamma, "bias": op.beta, "mean": op.moving_mean, "variance": op.moving_variance}
    arrays = {role: of(variable) for role, variable in names.items() if variable is not None}
    return tracing.channelwise("batch_norm", given[0], [op.axis % len(given[0].axes)], arrays, epsilon=op.epsilon, momentum=op.momentum)


def _norm(tracing: Tracing, op: Any, given: Sequence[Any], of: Of) -> Any:
    names = {"scale": getattr(op, "gamma", getattr(op, "scale", None)), "bias": getattr(op, "beta", None)}
    arrays = {role: of(variable) for role, variable in names.items() if variable is not None and not isinstance(variable, bool)}
    axes = [op.axis] if isinstance(op.axis, int) else list(op.axis)
    more = {"groups": op.groups} if hasattr(op, "groups") else {}
    return tracing.channelwise("scale", given[0], sorted(axis % len(given[0].axes) for axis in axes), arrays, epsilon=op.epsilon, **more)


def _embedding(tracing: Tracing, op: Any, given: Sequence[Any], of: Of) -> Any:
    _refuse_adapters(tracing, op)
    return tracing.embedding(of(op.embeddings), given[0])


def _prelu(tracing: Tracing, op: Any, given: Sequence[Any], of: Of) -> Any:
    slope, rank = of(op.alpha), len(given[0].axes)
    axes = [rank - len(slope.axes) + axis for axis, size in enumerate(slope.shape) if size > 1]
    return tracing.channelwise("prelu", given[0], axes, {"slope": slope})


def _merge(tracing: Tracing, op: Any, given: Sequence[Any], _: Of) -> Any:
    return tracing.elementwise(next(word for cls, word in WORDS.items() if isinstance(op, cls)), *given)


def _concatenation(tracing: Tracing, op: Any, given: Sequence[Any], _: Of) -> Any:
    return tracing.joined(list(given), op.axis % len(given[0].axes))


def _reshape(_: Tracing, op: Any, given: Sequence[Any], __: Of) -> Any:
    value = given[0]
    size = prod(value.shape)
    target = getattr(op, "target_shape", (-1,))
    rest = size // max(prod(one for one in target if one not in (-1, None)), 1)
    return flow.reshaped(value, (1, *(rest if one in (-1, None) else one for one in target)))


def _permute(_: Tracing, op: Any, given: Sequence[Any], __: Of) -> Any:
    return flow.transposed(given[0], (0, *op.dims))


def _repeat_vector(_: Tracing, op: Any, given: Sequence[Any], __: Of) -> Any:
    value = flow.inserted(given[0], 1)
    return flow.broadcast(value, (value.shape[0], op.n, value.shape[2]))


HANDLERS: dict[type, Handler] = {
    L.Dense: _dense,
    L.EinsumDense: _einsum_dense,
    **dict.fromkeys((L.Conv1D, L.Conv2D, L.Conv3D), _conv),
    **dict.fromkeys((L.DepthwiseConv1D, L.DepthwiseConv2D), _depthwise),
    **dict.fromkeys((L.SeparableConv1D, L.SeparableConv2D), _separable),
    **dict.fromkeys((L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose), _transposed),
    L.BatchNormalization: _batch_norm,
    **dict.fromkeys((L.LayerNormalization, L.GroupNormalization, L.RMSNormalization), _norm),
    L.Embedding: _embedding,
    L.PReLU: _prelu,
    **dict.fromkeys(WORDS, _merge),
    L.Concatenate: _concatenation,
    **dict.fromkeys((L.Flatten, L.Reshape), _reshape),
    L.Permute: _permute,
    L.RepeatVector: _repeat_vector,
    **dict.fromkeys(PLAIN, plain),
}


def handler_of(op: Any) -> Handler | None:
    """What is known of a layer: of its class, or of a parent whose ``call`` and weights it has not changed."""
    for cls in type(op).__mro__:
        if cls in HANDLERS:
            return HANDLERS[cls]
        if "call" in vars(cls) or "build" in vars(cls):
            return None
    return None
