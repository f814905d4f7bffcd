"""Diffusion without networks: noise schedules, what a network may predict, and samplers from noise to data."""

from zoo.diffusion.noise import Noise
from zoo.diffusion.samplers import DDIM, DDPM, DPMSolver, Euler, Heun, Sampler, guided, make_sampler
from zoo.diffusion.schedules import (
    Discrete,
    NoiseSchedule,
    Straight,
    cosine_betas,
    linear_betas,
    make_schedule,
    min_snr_weight,
    scaled_linear_betas,
    split,
    target_of,
    zero_terminal_snr,
)

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolver",
    "Discrete",
    "Euler",
    "Heun",
    "Noise",
    "NoiseSchedule",
    "Sampler",
    "Straight",
    "cosine_betas",
    "guided",
    "linear_betas",
    "make_sampler",
    "make_schedule",
    "min_snr_weight",
    "scaled_linear_betas",
    "split",
    "target_of",
    "zero_terminal_snr",
]
