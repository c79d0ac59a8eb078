"""Import this before torchvision: it then imports beside a CPU-only PyTorch, too.

The wheels of torchvision are built against CUDA. Beside a CPU-only PyTorch their compiled library does not load, and their Python files stumble over operators
that nobody has registered. Here the operators get names and signatures, and no kernels: models and transforms work, detection operators can't be called.
"""

from __future__ import annotations

import torch

_GRID = "SymInt pooled_height, SymInt pooled_width"
_INPUT = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_POOL = f"Tensor input, Tensor rois, float spatial_scale, {_GRID}"
_POOL_BACKWARD = f"Tensor grad, Tensor rois, {{}}float spatial_scale, {_GRID}, {{}}{_INPUT}{{}}"
_CONV = "Tensor weight, Tensor offset, Tensor mask, Tensor bias, " + ", ".join(
    f"SymInt {what}_{axis}" for what, axes in {"stride": "hw", "pad": "hw", "dilation": "hw"}.items() for axis in axes
)
_CONV += ", SymInt groups, SymInt offset_groups, bool use_mask"

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_POOL}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward({_POOL_BACKWARD.format('', '', ', int sampling_ratio, bool aligned')}) -> Tensor",
    f"roi_pool({_POOL}) -> (Tensor, Tensor)",
    f"_roi_pool_backward({_POOL_BACKWARD.format('Tensor argmax, ', '', '')}) -> Tensor",
    f"ps_roi_align({_POOL}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({_POOL_BACKWARD.format('Tensor channel_mapping, ', 'int sampling_ratio, ', '')}) -> Tensor",
    f"ps_roi_pool({_POOL}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({_POOL_BACKWARD.format('Tensor channel_mapping, ', '', '')}) -> Tensor",
    f"deform_conv2d(Tensor input, {_CONV}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, Tensor input, {_CONV}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)

LIBRARY = torch.library.Library("torchvision", "FRAGMENT") if torch.version.cuda is None else None
for operator in OPERATORS if LIBRARY else ():
    LIBRARY.define(operator)
