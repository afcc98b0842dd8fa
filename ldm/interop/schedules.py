"""What files say of the noise schedule: diffusers' scheduler_config.json, the tables of original files, our metadata.

A schedule is told as keyword arguments of NoiseSchedule; what a file does not say is left out. What is said is
followed or refused, never passed over: a model sampled under another schedule draws other, worse images.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.schedule import SHAPES, NoiseSchedule

Told = dict[str, Any]

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
KEYS = {"num_train_timesteps": "steps", "beta_start": "beta_start", "beta_end": "beta_end", "beta_schedule": "shape",
        "rescale_betas_zero_snr": "zero_snr"}  # fmt: skip
"""diffusers' names -> ours."""

MARKS: dict[str, Told] = {"v_pred": {"prediction": "v"}, "ztsnr": {"prediction": "v", "zero_snr": True}}
"""Empty tensors by which original files say what their tables do not (read by ComfyUI and the web UI's forks)."""

USUAL = ((0.00085, 0.012), (0.0001, 0.02))  # (beta_start, beta_end) of Stable Diffusion, and of DDPM


def from_scheduler(config: Mapping[str, Any], path: Path) -> Told:
    """Of diffusers' scheduler_config.json. ValueError for what this project does not have."""
    told = {ours: config[theirs] for theirs, ours in KEYS.items() if config.get(theirs) is not None}
    prediction = config.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise ValueError(f"{path}: prediction_type is {prediction!r}, expected one of {', '.join(PREDICTIONS)}")
    if config.get("trained_betas") is not None:
        raise ValueError(f"{path} has trained_betas, a schedule of its own, which this project does not have")
    return valid({**told, "prediction": PREDICTIONS[prediction]}, str(path))


def to_scheduler(schedule: NoiseSchedule) -> dict[str, Any]:
    """The keys of diffusers' scheduler_config.json that say what the model was trained with."""
    named = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    told = schedule.told()
    return {**{theirs: told[ours] for theirs, ours in KEYS.items()}, "prediction_type": named[told["prediction"]]}


def from_tensors(tensors: Mapping[str, Tensor], path: Path) -> Told:
    """Of an original file: its marks, and the schedule whose table of abar it carries, if it does.

    ValueError for a table that is none of this project's schedules.
    """
    told: Told = {}
    for mark, says in MARKS.items():
        if mark in tensors:
            told.update(says)
    if "alphas_cumprod" not in tensors:
        return told
    table = tensors["alphas_cumprod"].detach().double().flatten()
    for shape in SHAPES:
        for start, end in dict.fromkeys([*USUAL, *_ends(tensors, table)]):
            for zero_snr in (False, True):
                known: Told = {"steps": len(table), "beta_start": start, "beta_end": end, "shape": shape}
                known |= {"prediction": "v", "zero_snr": True} if zero_snr else {}
                if _is_table(table, known):
                    return known | told
    raise ValueError(f"{path} has a noise schedule of its own (its table alphas_cumprod); this project has "
                     f"{' and '.join(SHAPES)} ones, with or without zero terminal SNR")  # fmt: skip


def _ends(tensors: Mapping[str, Tensor], table: Tensor) -> list[tuple[float, float]]:
    """The first and the last beta, where the file has them."""
    if "betas" not in tensors or tensors["betas"].numel() != len(table):
        return []
    betas = tensors["betas"].detach().double().flatten()
    return [(betas[0].item(), betas[-1].item())]


def _is_table(table: Tensor, known: Told) -> bool:
    try:
        ours = NoiseSchedule(**known).alphas_cumprod.double()
    except ValueError:
        return False
    return torch.allclose(table, ours, rtol=5e-3, atol=1e-5)  # half precision has three digits


def valid(told: Mapping[str, Any], what: str) -> Told:
    """The same, if NoiseSchedule takes it; ValueError, beginning with `what`, if not."""
    try:
        NoiseSchedule(**{"prediction": "v" if told.get("zero_snr") else "eps", **told})
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).replace("model.schedule.", "")
        raise ValueError(f"{what} says of its noise schedule what this project does not have: {reason}") from error
    return dict(told)


def check(schedule: NoiseSchedule, told: Mapping[str, Any], what: object) -> None:
    """ValueError unless a model's schedule is what a file says."""
    own = schedule.told()
    for key, value in told.items():
        same = math.isclose(own[key], value, rel_tol=1e-3) if isinstance(value, float) else own[key] == value
        if not same:
            said = f"predicts {value}, this model {own[key]}" if key == "prediction" else \
                f"was trained with {key}={value} of its noise schedule, this model has {own[key]}"  # fmt: skip
            raise ValueError(f"{what} {said} (model.schedule.{key})")
