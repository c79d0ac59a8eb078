"""What the optimizers of PyTorch keep of each parameter. Sources: the files ``torch/optim/<name>.py``, where each makes its state at the first step."""

from __future__ import annotations

from math import prod

from unifreeze.plugin import Slots, times

# Most count their steps in a float32 for each parameter.
_STEP = 4


def _factored(shape: tuple[int, ...]) -> int:
    """A mean for each row and each column of the last two axes; of a vector, all of it."""
    return prod(shape[:-1]) + prod(shape[:-2]) * shape[-1] if len(shape) > 1 else prod(shape)


def _source(name: str) -> str:
    return f"torch/optim/{name}.py"


SLOTS = {
    "sgd": Slots(times(0), "nothing", _source("sgd")),
    "momentum": Slots(times(1), "1 × the parameter: momentum_buffer", _source("sgd")),
    "adam": Slots(times(2), "2 × the parameter: exp_avg, exp_avg_sq; 4 bytes each: step", _source("adam"), _STEP),
    "adamw": Slots(times(2), "2 × the parameter: exp_avg, exp_avg_sq; 4 bytes each: step", _source("adamw"), _STEP),
    "amsgrad": Slots(times(3), "3 × the parameter: exp_avg, exp_avg_sq, max_exp_avg_sq; 4 bytes each: step", _source("adam"), _STEP),
    "nadam": Slots(times(2), "2 × the parameter: exp_avg, exp_avg_sq; 8 bytes each: step, mu_product", _source("nadam"), 2 * _STEP),
    "radam": Slots(times(2), "2 × the parameter: exp_avg, exp_avg_sq; 4 bytes each: step", _source("radam"), _STEP),
    "adamax": Slots(times(2), "2 × the parameter: exp_avg, exp_inf; 4 bytes each: step", _source("adamax"), _STEP),
    "rmsprop": Slots(times(1), "1 × the parameter: square_avg; 4 bytes each: step", _source("rmsprop"), _STEP),
    "adagrad": Slots(times(1), "1 × the parameter: sum; 4 bytes each: step", _source("adagrad"), _STEP),
    "adadelta": Slots(times(2), "2 × the parameter: square_avg, acc_delta; 4 bytes each: step", _source("adadelta"), _STEP),
    "adafactor": Slots(
        _factored, "rows + columns of each matrix: row_var, col_var; all of a vector: variance; 4 bytes each: step", _source("_adafactor"), _STEP
    ),
    "lion": Slots(
        times(1), "1 × the parameter: exp_avg", "Chen et al., Symbolic Discovery of Optimization Algorithms, 2023, program 1; PyTorch has none of its own"
    ),
}
