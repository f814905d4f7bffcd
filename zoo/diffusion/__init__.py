"""Diffusion processes, independent of the network: noise schedules, prediction types and samplers."""

from zoo.diffusion.noise import Noise
from zoo.diffusion.prediction import min_snr_weight, prediction_target, to_x0_eps
from zoo.diffusion.samplers import DDIM, DDPM, DPMSolver, Euler, Heun, Sampler, classifier_free_guidance, make_sampler
from zoo.diffusion.schedules import (
    DDPMSchedule,
    FlowMatching,
    NoiseSchedule,
    cosine_betas,
    linear_betas,
    make_schedule,
    scaled_linear_betas,
    zero_terminal_snr,
)

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolver",
    "DDPMSchedule",
    "Euler",
    "Heun",
    "Noise",
    "NoiseSchedule",
    "Sampler",
    "FlowMatching",
    "cosine_betas",
    "classifier_free_guidance",
    "linear_betas",
    "make_sampler",
    "make_schedule",
    "min_snr_weight",
    "scaled_linear_betas",
    "to_x0_eps",
    "prediction_target",
    "zero_terminal_snr",
]
