"""What each operator of ATen does, in the language that all tracers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch

from unifreeze.plugin import Tracing, flow

Value = flow.Value
# Each element comes from one element, or from several positions of one channel.
_PLAIN = frozenset(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _log_softmax _softmax _safe_softmax _to_copy abs adaptive_avg_pool1d adaptive_max_pool2d alias avg_pool1d
    avg_pool2d avg_pool3d bernoulli ceil celu clamp clamp_max clamp_min clone contiguous cos detach dropout elu erf exp expm1 floor gelu glu_none
    hardsigmoid hardswish hardtanh leaky_relu lift_fresh lift_fresh_copy log log1p logit max_pool1d max_pool2d max_pool2d_with_indices
    max_pool3d_with_indices mish nan_to_num native_dropout neg pow reciprocal relu relu6 round rrelu_with_noise rsqrt rsub selu sigmoid sign silu sin
    softmax softplus sqrt square tan tanh threshold upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa masked_fill tril triu fill positive _conj
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_WORDS = {"add": "+", "mul": "*", "sub": "-", "div": "/", "maximum": "max", "minimum": "min", "where": "where", "pow": "pow", "addcmul": "+"}
_VIEWS = {"view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_reshape_alias", "view_copy"}
_REDUCTIONS = {"mean", "sum", "amax", "amin", "logsumexp", "var", "std", "var_mean", "std_mean", "prod", "norm", "linalg_vector_norm", "max", "min"}
_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm", "batch_norm", "_batch_norm_no_update"}
_MAKERS = {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full", "new_empty"}


@dataclass(slots=True)
class Recorder:
    """What is known of each tensor.

    Attributes:
        tracing: The units.
        statistics: Paths of the buffers by the ids of their stand-ins.
        values: What is known, by id.
        alive: The tensors, since an id is good only as long as its tensor lives.
    """

    tracing: Tracing
    statistics: dict[int, str] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    alive: list[object] = field(default_factory=list)

    def of(self, tensor: Any) -> Any:
        """What is known of a tensor."""
        found = self.values.get(id(tensor))
        return flow.constant(tensor.shape) if found is None else found

    def keep(self, tensor: object, value: Any) -> None:
        """Remembers what is known of a tensor."""
        self.values[id(tensor)] = value
        self.alive.append(tensor)

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Takes note of one operator that has run."""
        name = func.overloadpacket.__name__
        name = name.rstrip("_") if not name.startswith("_") else name
        tensors = [x for x in flat([*args, *kwargs.values()]) if isinstance(x, torch.Tensor)]
        outs = [one for one in flat([out]) if isinstance(one, torch.Tensor)]
        known = [value for value in map(self.of, tensors) if value.flows or value.weight]
        if not known and not any(id(x) in self.statistics for x in tensors):
            return
        for one in outs:
            self.alive.append(one)
        if not outs or not known or name in _MAKERS or all(one.dtype == torch.bool for one in outs) or self._counts(tensors, outs):
            # Neither a mask nor a count of positions is data.
            for one in outs:
                self.values.pop(id(one), None)
            return
        if len(known) > 1 and func._schema.is_mutable and outs and _is_part(outs[0]):
            raise self.tracing.refusal(f"The operation {name}, which changes a part of a tensor in place,")
        values = self._value(name, func, args, kwargs, outs)
        for one, value in zip(outs, values if isinstance(values, list) else [values] * len(outs), strict=False):
            self.keep(one, value)

    def _counts(self, tensors: Sequence[Any], outs: Sequence[Any]) -> bool:
        given = [flow for x in tensors for flow in self.of(x).flows]
        whole = all(not x.dtype.is_floating_point for x in tensors if self.of(x).flows)
        weighted = any(self.of(x).weight for x in tensors)
        return whole and not weighted and all(one.unit < 0 for one in given) and any(x.dtype.is_floating_point for x in outs)

    def _value(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outs: Sequence[Any]) -> Any:
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        handler = HANDLERS.get(name)
        if handler:
            found = handler(self, given, outs)
        elif name in _VIEWS:
            found = flow.reshaped(self.of(args[0]), outs[0].shape)
        elif name in _WORDS and sum(isinstance(x, torch.Tensor) for x in args) > 1:
            found = self.tracing.elementwise(_WORDS[name], *(self.of(x) for x in args if isinstance(x, torch.Tensor)))
        elif name in _PLAIN | _WORDS.keys():
            found = self._plain(name, args, outs[0])
        elif name in _REDUCTIONS:
            found = _reduced(self, given, outs)
        else:
            shapes = ", ".join(str(tuple(x.shape)) for x in flat(args) if isinstance(x, torch.Tensor))
            raise self.tracing.refusal(f"The operation {name} of {shapes}")
        return found

    def _plain(self, name: str, args: tuple[Any, ...], out: Any) -> Any:
        data = [x for x in flat(args) if isinstance(x, torch.Tensor) and self.of(x).flows]
        value = self.of(data[0] if data else args[0])
        if not value.flows:
            view = name in {"alias", "clone", "contiguous", "detach", "_to_copy", "lift_fresh", "lift_fresh_copy"}
            return value if view else replace(value, computed=True)
        if len(data) > 1:
            raise self.tracing.refusal(f"The operation {name} of several values")
        if len(value.axes) != len(out.shape):
            value = flow.broadcast(value, out.shape)
        return flow.resized(value, out.shape)


def _is_part(tensor: Any) -> bool:
    return tensor._is_view() and tensor._base is not None and tensor._base.numel() != tensor.numel()


def flat(values: Any) -> Iterator[Any]:
    """What is in nested lists and dictionaries."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from flat(value)
        elif isinstance(value, dict):
            yield from flat(value.values())
        else:
            yield value


Handler = Callable[[Recorder, dict[str, Any], Sequence[Any]], Any]
HANDLERS: dict[str, Handler] = {}


def _for(*names: str) -> Callable[[Handler], Handler]:
    def put(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return put


def _reduced(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    x = next(iter(given.values()))
    value = rec.of(x)
    if not value.flows:
        return replace(value, computed=True)
    dims = given.get("dim")
    dims = range(x.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return flow.reduced(value, dims, keep=len(outs[0].shape) == x.dim())


@_for("convolution", "_convolution")
def _convolution(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    x, weight = given["input"], given["weight"]
    stride, padding, dilation = (tuple(given[word]) for word in ("stride", "padding", "dilation"))
    window, transposed = tuple(weight.shape[2:]), given["transposed"]
    apart = all(
        (size == 1 or step >= size or (before == size and after == 1)) and not pad
        for size, step, pad, before, after in zip(window, stride * len(window), padding * len(window), x.shape[2:], outs[0].shape[2:], strict=False)
    )
    found = rec.tracing.convolution(
        rec.of(x),
        rec.of(weight),
        outs[0].shape,
        axes=(1, 0, 1) if transposed else (1, 1, 0),
        groups=given["groups"],
        overlaps=not apart,
        transposed=transposed,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    return _with_bias(rec, found, given.get("bias"), 1)


def _with_bias(rec: Recorder, value: Any, bias: Any, axis: int) -> Any:
    return value if bias is None else rec.tracing.channelwise("bias", value, [axis], {"bias": rec.of(bias)})


@_for("addmm")
def _addmm(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    return rec.tracing.elementwise("+", rec.tracing.matmul(rec.of(given["mat1"]), rec.of(given["mat2"])), rec.of(given["self"]))


@_for("baddbmm")
def _baddbmm(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    product = rec.tracing.matmul(rec.of(given["batch1"]), rec.of(given["batch2"]))
    return product if given.get("beta", 1) == 0 else rec.tracing.elementwise("+", product, rec.of(given["self"]))


@_for("mm", "bmm", "matmul")
def _product(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    one, other = list(given.values())[:2]
    return rec.tracing.matmul(rec.of(one), rec.of(other))


@_for("linear")
def _linear(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    bias = given.get("bias")
    return rec.tracing.linear(rec.of(given["input"]), flow.transposed(rec.of(given["weight"]), (1, 0)), None if bias is None else rec.of(bias))


@_for(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps",
    "scaled_dot_product_attention",
)
def _attention(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    mask = next((given[word] for word in ("attn_mask", "attn_bias") if given.get(word) is not None), None)
    if mask is not None and rec.of(mask).flows:
        batch = "abcdefgh"[: given["query"].dim() - 2]
        scores = rec.tracing.einsum(f"{batch}qx,{batch}kx->{batch}qk", rec.of(given["query"]), rec.of(given["key"]))
        return rec.tracing.einsum(f"{batch}qk,{batch}kv->{batch}qv", rec.tracing.elementwise("+", scores, rec.of(mask)), rec.of(given["value"]))
    return rec.tracing.attention(*(rec.of(given[word]) for word in ("query", "key", "value")))


@_for(*_NORMS)
def _batch_norm(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    arrays: dict[str, Any] = {"scale": rec.of(given["weight"]) if given.get("weight") is not None else None}
    arrays["bias"] = rec.of(given["bias"]) if given.get("bias") is not None else None
    for role, word in (("mean", "running_mean"), ("variance", "running_var")):
        path = rec.statistics.get(id(given.get(word)))
        arrays[role] = flow.parameter(path, given[word].shape) if path else None
    kind = "batch_norm" if arrays["mean"] is not None else "scale"
    momentum = {"momentum": 1 - given["momentum"]} if given.get("momentum") is not None else {}
    return [rec.tracing.channelwise(kind, rec.of(given["input"]), [1], arrays, epsilon=given.get("eps", given.get("epsilon")), **momentum)]


@_for("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def _layer_norm(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    rank = len(given["normalized_shape"])
    arrays = {role: rec.of(given[word]) for role, word in (("scale", "weight"), ("bias", "bias")) if given.get(word) is not None}
    return [rec.tracing.channelwise("scale", rec.of(given["input"]), range(-rank + given["input"].dim(), given["input"].dim()), arrays, epsilon=given["eps"])]


@_for("native_group_norm", "group_norm")
def _group_norm(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    arrays = {role: rec.of(given[word]) for role, word in (("scale", "weight"), ("bias", "bias")) if given.get(word) is not None}
    groups = given.get("group", given.get("num_groups"))
    return [rec.tracing.channelwise("scale", rec.of(given["input"]), [1], arrays, epsilon=given["eps"], groups=groups)]


@_for("prelu", "_prelu_kernel")
def _prelu(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    weight = rec.of(given["weight"])
    return rec.tracing.channelwise("prelu", rec.of(given["self"]), [1] if prod(weight.shape) > 1 else [], {"slope": weight})


@_for("embedding")
def _embedding(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    ids = given["indices"]
    if ids.dtype.is_floating_point:
        raise TypeError("ids are integers")
    return rec.tracing.embedding(rec.of(given["weight"]), rec.of(ids))


@_for("index")
def _index(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    value, ids = rec.of(given["self"]), given["indices"]
    if value.weight and len(ids) == 1 and len(value.axes) == 2:
        return rec.tracing.embedding(value, rec.of(ids[0]))
    raise rec.tracing.refusal("An index of data by an array")


@_for("index_select")
def _index_select(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    if rec.of(given["self"]).weight and given["dim"] == 0:
        return rec.tracing.embedding(rec.of(given["self"]), rec.of(given["index"]))
    raise rec.tracing.refusal("An index of data by an array")


@_for("permute", "movedim")
def _permute(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    rank = given["self"].dim()
    return flow.transposed(rec.of(given["self"]), [axis % rank for axis in given["dims"]])


@_for("transpose", "t", "swapaxes")
def _transpose(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    rank = given["self"].dim()
    order = list(range(rank))
    if rank > 1:
        a, b = given.get("dim0", 0) % rank, given.get("dim1", 1) % rank
        order[a], order[b] = order[b], order[a]
    return flow.transposed(rec.of(given["self"]), order)


@_for("expand")
def _expand(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    return rec.tracing.broadcast(rec.of(given["self"]), outs[0].shape)


@_for("repeat")
def _repeat(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    shape = (1,) * (len(given["repeats"]) - given["self"].dim()) + tuple(given["self"].shape)
    if any(size > 1 and times > 1 for size, times in zip(shape, given["repeats"], strict=True)):
        raise rec.tracing.refusal("A repetition of an axis")
    return rec.tracing.broadcast(rec.of(given["self"]), outs[0].shape)


@_for("slice", "narrow")
def _slice(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    axis = given.get("dim", 0) % given["self"].dim()
    size = given["self"].shape[axis]
    start = given.get("start") or 0
    start = max(start + size, 0) if start < 0 else min(start, size)
    return flow.sliced(rec.of(given["self"]), axis, start, given.get("step", 1), outs[0].shape[axis])


@_for("select")
def _select(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    axis = given["dim"] % given["self"].dim()
    return flow.dropped(flow.sliced(rec.of(given["self"]), axis, given["index"] % given["self"].shape[axis], 1, 1), axis)


@_for("split", "split_with_sizes", "chunk", "tensor_split")
def _splits(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    axis, found, start = given.get("dim", 0) % given["self"].dim(), [], 0
    for out in outs:
        found.append(flow.sliced(rec.of(given["self"]), axis, start, 1, out.shape[axis]))
        start += out.shape[axis]
    return found


@_for("unbind")
def _unbind(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    axis = given.get("dim", 0) % given["self"].dim()
    return [flow.dropped(flow.sliced(rec.of(given["self"]), axis, place, 1, 1), axis) for place in range(len(outs))]


@_for("cat", "concat", "concatenate")
def _cat(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    tensors = given["tensors"]
    axis = given.get("dim", 0) % outs[0].dim()
    return rec.tracing.joined([rec.of(x) for x in tensors if x.dim() == outs[0].dim()], axis)


@_for("stack")
def _stack(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    axis = given.get("dim", 0) % outs[0].dim()
    return rec.tracing.joined([flow.inserted(rec.of(x), axis) for x in given["tensors"]], axis)


@_for("constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad2d")
def _pad(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    value, pads = rec.of(given["self"]), given["pad" if "pad" in given else "padding"]
    for place in range(len(pads) // 2):
        axis, (before, after) = len(value.axes) - 1 - place, pads[2 * place : 2 * place + 2]
        value = rec.tracing.padded(value, axis, before, after)
    return value


@_for("as_strided")
def _as_strided(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    x = given["self"]
    steps = ([step for step, size in zip(one.stride(), one.shape, strict=True) if size > 1] for one in (x, outs[0]))
    if x.shape == outs[0].shape and next(steps) == next(steps):
        return rec.of(x)
    raise rec.tracing.refusal(f"The operation as_strided of {tuple(x.shape)} to {tuple(outs[0].shape)}")


@_for("roll", "flip")
def _roll(rec: Recorder, given: dict[str, Any], _: Sequence[Any]) -> Any:
    value = rec.of(given["self"])
    dims = given["dims"]
    if not value.flows or any(axis % len(value.axes) in flow.own_axes(value) for axis in dims) or not dims:
        raise rec.tracing.refusal("A roll or flip of channels or of a parameter")
    return value


@_for("glu")
def _glu(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    axis = given.get("dim", -1) % given["self"].dim()
    half = outs[0].shape[axis]
    one, other = (flow.sliced(rec.of(given["self"]), axis, start, 1, half) for start in (0, half))
    return rec.tracing.elementwise("*", one, other)


@_for("pixel_shuffle")
def _pixel_shuffle(rec: Recorder, given: dict[str, Any], outs: Sequence[Any]) -> Any:
    factor = given["upscale_factor"]
    *batch, channels, height, width = given["self"].shape
    value = flow.reshaped(rec.of(given["self"]), (*batch, channels // factor**2, factor, factor, height, width))
    rank = len(batch)
    order = (*range(rank), rank, rank + 3, rank + 1, rank + 4, rank + 2)
    return flow.reshaped(flow.transposed(value, order), outs[0].shape)
