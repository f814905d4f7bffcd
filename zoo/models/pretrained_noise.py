"""Prediction type and noise schedule that pretrained diffusion models were trained with, from diffusers' configs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.diffusion.prediction import PredictionType
from zoo.diffusion.schedules import DDPMSchedule, NoiseSchedule, ScheduleName, make_schedule
from zoo.distributed import say
from zoo.weights.formats.diffusers import open_part, scheduler_config

# What zoo knows of diffusers' schedulers: their prediction types, and their beta schedules with zoo's names.
PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
SCHEDULES: dict[str, ScheduleName] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}


def training_schedule(config: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Return prediction type and noise schedule as arguments of ``LatentDiffusion``.

    Args:
        config: diffusers' ``scheduler_config.json``.
        path: pipeline that it belongs to, for errors.

    Raises:
        ValueError: zoo has no such prediction type or schedule.
    """
    require_known(config, "prediction_type", PREDICTION_TYPES, path)
    require_known(config, "beta_schedule", tuple(SCHEDULES), path)
    schedule = SCHEDULES[config["beta_schedule"]]
    arguments = {"prediction_type": config["prediction_type"], "schedule": schedule}
    if schedule != "cosine":  # which is not defined by its first and last beta
        for name in ("beta_start", "beta_end"):
            if name in config:
                arguments[name] = config[name]
    arguments["timesteps"] = config.get("num_train_timesteps", 1000)
    arguments["zero_snr"] = config.get("rescale_betas_zero_snr", False)
    return arguments


def require_known(config: Mapping[str, Any], key: str, known: tuple[str, ...], path: str | Path) -> None:
    """Raise a ValueError where an entry of a scheduler's config has a value that zoo does not support."""
    value = config.get(key)
    if value not in known:
        raise ValueError(f"{path}: its scheduler has {key} {value}, which is not supported; zoo has {', '.join(known)}")


def check_prediction_type(weights: str, prediction_type: PredictionType, schedule: NoiseSchedule) -> None:
    """Compare how weights were trained with how they are used.

    Args:
        weights: file or folder of the weights.
        prediction_type: prediction type that they are used with.
        schedule: noise schedule that they are used with; another one is allowed, with a message.

    Raises:
        ValueError: the weights were trained with another prediction type.
    """
    path = Path(weights).expanduser()
    trained = trained_prediction_type(path, prediction_type, schedule)
    if trained != prediction_type:
        raise ValueError(
            f"{weights} was trained for {trained}: use --model.prediction_type {trained}, not {prediction_type}"
        )


def trained_prediction_type(path: Path, prediction_type: str, schedule: NoiseSchedule) -> str:
    """Return the prediction type that weights were trained with, or the given one where that is unknown."""
    if path.is_dir() and not (path / "scheduler" / "scheduler_config.json").is_file():
        return prediction_type
    if path.is_file():
        file = open_part(path, "unet")
        if file.config.get("from") != "ldm":
            # A file of zoo knows it if it holds a whole module, not if it holds a network alone.
            return file.arguments.get("prediction_type", prediction_type)
    config = scheduler_config(path)
    trained = config["prediction_type"]
    if trained == prediction_type and config.get("beta_schedule") in SCHEDULES:
        report_other_schedule(str(path), config, schedule)
    return trained


def report_other_schedule(weights: str, config: Mapping[str, Any], schedule: NoiseSchedule) -> None:
    """Print a line where weights are used with another noise schedule than they were trained with."""
    arguments = training_schedule(config, weights)
    del arguments["prediction_type"]
    trained = make_schedule(
        arguments["schedule"],
        arguments["timesteps"],
        arguments["zero_snr"],
        arguments.get("beta_start"),
        arguments.get("beta_end"),
    )
    if not same_schedule(trained, schedule):
        entries = ", ".join(f"{name}={value}" for name, value in arguments.items())
        say(f"{weights} was trained with {entries}; another noise schedule is used here")


def same_schedule(a: NoiseSchedule, b: NoiseSchedule) -> bool:
    """Return whether two noise schedules are the same DDPM schedule, up to the rounding of float32."""
    if not isinstance(a, DDPMSchedule) or not isinstance(b, DDPMSchedule):
        return False
    if a.steps != b.steps:
        return False
    return torch.allclose(a.alphas_cumprod, b.alphas_cumprod, rtol=1e-6, atol=0)
