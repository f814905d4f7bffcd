"""What makes values non-finite, told by the operation that did it, and what helps."""

import re
from typing import Any

# operation, cause, advice; the first line whose pattern is the whole name of the operation counts
FORWARD = (
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
    ("sqrt|rsqrt", "root of zero or of a negative number", "Clamp the input to at least a small positive number."),
    ("pow", "power that overflows or has no value", "Clamp the base, and keep it positive for broken exponents."),
    (
        "acos|asin|acosh|atanh|erfinv",
        "input outside the function's domain",
        "Clamp the input to just inside its domain.",
    ),
    (
        "(native_|cudnn_|miopen_|native_batch_norm_)?batch_norm.*|native_batch_norm.*",
        "batch norm with a bad variance",
        "Look at running_var in the statistics: negative or huge values come from a broken checkpoint or update; "
        "recompute the running statistics.",
    ),
)
BACKWARD = (
    (
        "sqrt|rsqrt|pow|norm|linalgvectornorm|cdist|euclideandist|std",
        "gradient of a root at zero",
        "The slope of a root at 0 is infinite: use sqrt(x + eps), or add eps before the norm or the deviation.",
    ),
    (
        "log|log2|log10|log1p|xlogy|logit|binarycrossentropy",
        "gradient of log at zero",
        "The slope of log at 0 is infinite, even if the result is masked later: mask or clamp the argument.",
    ),
    (
        "div|reciprocal",
        "gradient of a division by zero",
        "Masking the result afterwards does not help: replace the zero in the denominator before dividing.",
    ),
    ("acos|asin|atan2|acosh|atanh", "gradient at the edge of a domain", "Clamp the input to just inside the domain."),
)
MASKED_ROW = (
    "everything in a row is masked",
    "A softmax over nothing but -inf is NaN: leave every row at least one open position, or zero such rows afterwards.",
)
ZERO_TIMES_INFINITY = (
    "zero times infinity",
    "Infinity times 0, or minus infinity, is NaN: build the mask with masked_fill or torch.where, not by arithmetic.",
)
HALF = (
    "overflow in {dtype}",
    "The result does not fit in {dtype} (float16 ends at 65504, bfloat16 at 3.4e38): scale it down, keep this "
    "operation in float32, or use bfloat16 in place of float16.",
)
RECURRENCE = (
    "exploding recurrence",
    "Each pass through this module multiplies again: set gradient_clip_val, lower the learning rate, start the "
    "recurrent weights orthogonal, or normalise the state.",
)
EXPLOSION = (
    "explosion",
    "The numbers grew until they overflowed: compare the weights and inputs in the statistics with those of a healthy "
    "step; set gradient_clip_val, lower the learning rate or warm it up.",
)
BEFORE = {
    "input data": (
        "non-finite input",
        "The batch came like this: look at these samples in the dataset and at its transforms (a division by a zero "
        "deviation, missing values).",
    ),
    "weight": (
        "non-finite weight",
        "The value was there before the step: look at the initialisation, at the checkpoint that was loaded, and at "
        "whatever writes to this tensor.",
    ),
}
UNTRACED = (
    "not reproduced",
    "The module's output was like this in the step, yet not in its replay: look for kernels that vary from run to run, "
    "compiled code and state kept outside the buffers.",
)
INTENTIONAL = (
    "an infinity written on purpose reaches the loss",
    "A mask of -inf is harmless before a softmax only: apply it to no value that the loss uses.",
)


def explain(
    kind: str, operation: str, statistics: dict[str, Any], masked: bool = False, repeated: bool = False
) -> tuple[str, str]:
    """Cause and advice; masked: an infinite value was an input, repeated: the module is applied over and over."""
    if kind in BEFORE:
        return BEFORE[kind]
    backward = re.match(r"(\w+?)(Backward|$)", operation) if kind == "gradient" else None
    name = (backward.group(1) if backward else operation).strip("_").lower()
    if masked and ("softmax" in name or "attention" in name):
        return MASKED_ROW
    if masked:
        return ZERO_TIMES_INFINITY
    for pattern, cause, advice in BACKWARD if kind == "gradient" else FORWARD:
        if re.fullmatch(pattern, name):
            return cause, advice
    dtype = statistics["output"]["dtype"]
    if dtype in ("float16", "bfloat16"):
        return HALF[0].format(dtype=dtype), HALF[1].format(dtype=dtype)
    return RECURRENCE if repeated else EXPLOSION


def format_report(report: dict[str, Any]) -> str:
    """The report as a paragraph."""
    module = f"{report['module'] or 'the LightningModule'} ({report['module_class']})"
    when = f"Step {report['step']} (epoch {report['epoch']}, batch {report['batch_idx']})"
    if report["phase"] == "before":
        where = f"began with a non-finite {report['kind'].replace('optimizer state', 'weight')}, {report['operation']}"
    else:
        again = f", call {report['call']}" if report["call"] > 1 else ""
        where = f"first met a non-finite {report['kind']} in the {report['phase']} pass of {module}{again}"
        where += f", operation {report['operation']}" + (f" at {report['source']}" if report["source"] else "")
    samples = report["samples"] or []
    shown = ", ".join(map(str, samples[:10])) + (", ..." if len(samples) > 10 else "")
    of = f" (samples {shown} of the batch)" if samples else ""
    return f"{when} {where}{of}; the weights were left as they were. Cause: {report['cause']}. {report['advice']}"
