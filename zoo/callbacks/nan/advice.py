"""Cause and advice for the operation that produced a non-finite value, and the report as a sentence."""

from __future__ import annotations

import re
from typing import Any

Row = tuple[str, str, str]
"""Regular expression for the whole name of an operation, cause, advice."""

MAX_SAMPLES = 10  # indices of samples in a report

FORWARD: tuple[Row, ...] = (
    (
        "exp|exp2|expm1|sinh|cosh|logaddexp|softplus",
        "overflow in exp",
        "float32 overflows above exp(88): subtract the maximum first, as softmax and logsumexp do, or clamp the input.",
    ),
    (
        "log|log2|log10|log1p|xlogy|logit|binary_cross_entropy",
        "log of zero",
        "The logarithm of 0 is -inf and that of a negative number is NaN: clamp the input to a small positive value, "
        "or use log_softmax or a loss that takes logits.",
    ),
    (
        "div|reciprocal|remainder|fmod",
        "division by zero",
        "Add a small number to the denominator or clamp it; with torch.where, replace the zero before dividing.",
    ),
    (
        "sqrt|rsqrt",
        "root of zero or of a negative number",
        "Clamp the input to at least a small positive number.",
    ),
    (
        "pow",
        "overflow or undefined value in pow",
        "Clamp the base, and keep it positive for fractional exponents.",
    ),
    (
        "acos|asin|acosh|atanh|erfinv",
        "input outside the function's domain",
        "Clamp the input to just inside the domain.",
    ),
    (
        "(native_|cudnn_|miopen_|native_batch_norm_)?batch_norm.*|native_batch_norm.*",
        "batch norm with a bad variance",
        "Check running_var in the statistics: negative or huge values come from a corrupt checkpoint or update; "
        "recompute the running statistics.",
    ),
)
BACKWARD: tuple[Row, ...] = (
    (
        "sqrt|rsqrt|pow|norm|linalgvectornorm|cdist|euclideandist|std",
        "gradient of a root at zero",
        "The derivative of a root at 0 is infinite: use sqrt(x + eps), or add eps before the norm or the standard "
        "deviation.",
    ),
    (
        "log|log2|log10|log1p|xlogy|logit|binarycrossentropy",
        "gradient of log at zero",
        "The derivative of log at 0 is infinite, even if the result is masked later: mask or clamp the argument.",
    ),
    (
        "div|reciprocal",
        "gradient of a division by zero",
        "Masking the result afterwards does not help: replace the zero in the denominator before dividing.",
    ),
    (
        "acos|asin|atan2|acosh|atanh",
        "gradient at the edge of a domain",
        "Clamp the input to just inside the domain.",
    ),
)
MASKED_ROW = (
    "everything in a row is masked",
    "Softmax over a row of -inf is NaN: leave at least one position of every row unmasked, or set such rows to zero "
    "afterwards.",
)
ZERO_TIMES_INFINITY = (
    "zero times infinity",
    "Infinity times 0 and infinity minus infinity are NaN: build the mask with masked_fill or torch.where, not by "
    "arithmetic.",
)
HALF = (
    "overflow in {dtype}",
    "The result does not fit into {dtype} (maximum 65504 in float16, 3.4e38 in bfloat16): scale it down, keep this "
    "operation in float32, or use bfloat16 instead of float16.",
)
RECURRENCE = (
    "exploding recurrence",
    "The values grow with every call of this module: set gradient_clip_val, lower the learning rate, initialise the "
    "recurrent weights orthogonally, or normalise the state.",
)
EXPLOSION = (
    "explosion",
    "The values grew until they overflowed: compare the weights and inputs in the statistics with those of a healthy "
    "step; set gradient_clip_val, lower the learning rate or warm it up.",
)
BEFORE = {
    "input data": (
        "non-finite input",
        "The batch contained it before the step: check these samples in the dataset and its transforms (division by a "
        "standard deviation of zero, missing values).",
    ),
    "weight": (
        "non-finite weight",
        "The tensor contained it before the step: check the initialisation, the checkpoint that was loaded, and all "
        "code that writes to this tensor.",
    ),
}
UNTRACED = (
    "not reproduced",
    "The module's output was non-finite in the training step but finite in its replay: suspect non-deterministic "
    "kernels, compiled code and state outside the buffers.",
)
INTENTIONAL = (
    "an infinity written on purpose reaches the loss",
    "A mask of -inf is harmless only before a softmax: do not apply it to values that the loss uses.",
)


def explain(
    kind: str,
    operation: str,
    statistics: dict[str, Any],
    masked: bool = False,
    repeated: bool = False,
) -> tuple[str, str]:
    """Return cause and advice for an operation that produced a non-finite value.

    Args:
        kind: kind of the finding, see ``trace.Finding``.
        operation: name of the operation, or of the autograd node for a gradient.
        statistics: statistics of its inputs and output.
        masked: whether an input was already infinite.
        repeated: whether the module is called several times in a step.
    """
    if kind in BEFORE:
        return BEFORE[kind]
    name = _plain_name(kind, operation)
    if masked:
        if "softmax" in name or "attention" in name:
            return MASKED_ROW
        return ZERO_TIMES_INFINITY
    rows = BACKWARD if kind == "gradient" else FORWARD
    for pattern, cause, advice in rows:
        if re.fullmatch(pattern, name):
            return cause, advice
    dtype = statistics["output"]["dtype"]
    if dtype in ("float16", "bfloat16"):
        return HALF[0].format(dtype=dtype), HALF[1].format(dtype=dtype)
    if repeated:
        return RECURRENCE
    return EXPLOSION


def _plain_name(kind: str, operation: str) -> str:
    """Return the name of an operation in lower case: ``sqrt`` for ``SqrtBackward0 (div)`` and for ``sqrt_``."""
    if kind == "gradient":
        node = re.match(r"(\w+?)(Backward|$)", operation)
        if node:
            operation = node.group(1)
    return operation.strip("_").lower()


def format_report(report: dict[str, Any]) -> str:
    """Return the report of ``NaNGuard`` as one paragraph: where, which samples, cause, advice."""
    step = f"Step {report['step']} (epoch {report['epoch']}, batch {report['batch_idx']})"
    samples = _format_samples(report["samples"] or [])
    place = f"{step} {_format_place(report)}{samples}; the weights are unchanged."
    return f"{place} Cause: {report['cause']}. {report['advice']}"


def _format_place(report: dict[str, Any]) -> str:
    if report["phase"] == "before":
        # The optimizer's state is known by the weight that it updates.
        kind = report["kind"].replace("optimizer state", "weight")
        return f"began with a non-finite {kind}, {report['operation']}"
    owner = report["module"] or "the LightningModule"
    place = f"first produced a non-finite {report['kind']} in the {report['phase']} pass of {owner}"
    place += f" ({report['module_class']})"
    if report["call"] > 1:
        place += f", call {report['call']}"
    place += f", operation {report['operation']}"
    if report["source"]:
        place += f" at {report['source']}"
    return place


def _format_samples(samples: list[int]) -> str:
    if not samples:
        return ""
    listed = ", ".join(str(index) for index in samples[:MAX_SAMPLES])
    if len(samples) > MAX_SAMPLES:
        listed += ", ..."
    return f" (samples {listed} of the batch)"
