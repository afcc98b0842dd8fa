"""UniPC: a unified predictor-corrector, Zhao et al. 2023, arXiv:2302.04867 (multistep, predicting z0, B2(h))."""

import itertools
import math

import torch
from torch import Tensor

from ldm.samplers.contract import Callback, Denoiser, PerImageNoise, evaluate, half_log_snr, widened
from ldm.schedule import NoiseSchedule


@torch.no_grad()
def unipc(
    denoiser: Denoiser,
    z: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    generator: PerImageNoise | None = None,
    order: int = 2,
    callback: Callback | None = None,
) -> Tensor:
    """Sample along `timesteps`; see `ldm.samplers` for the contract. Deterministic: the generator is not used.

    order: of the predictor, 1 to 3; the corrector has one more and costs no evaluation: the denoiser's answer at
    the predicted point corrects it, and starts the next step. The first and last steps are of lower order.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"the order of unipc must be 1, 2 or 3, got {order}")
    dtype, z = z.dtype, widened(z)
    steps = list(schedule.steps_along(timesteps, final_alpha=1.0))
    history: list[tuple[Tensor, float]] = []  # (z0, abar), newest first
    before, used = z, 1  # where the last step started, and its order
    for i, (t, a, a_prev) in enumerate(steps):
        eps = evaluate(denoiser, z, t, dtype)
        z0 = (z - (1 - a) ** 0.5 * eps) / a**0.5
        if history:
            z = _update(before, history[:used], a, corrector=z0)
        history = [(z0, a), *history[: order - 1]]
        used = min(order, len(history), len(steps) - i)
        before, z = z, _update(z, history[:used], a_prev)
        if callback is not None:
            callback(i, z)
    return z.to(dtype)


def _update(z: Tensor, history: list[tuple[Tensor, float]], target: float, corrector: Tensor | None = None) -> Tensor:
    """From z at the newest point of `history` to abar = target: equation 3 (UniP), or 2 (UniC) with z0 there."""
    z0, start = history[0]
    h = half_log_snr(target) - half_log_snr(start)
    growth = math.expm1(-h)  # B2(h) of the paper, for z0 prediction
    z = (target**0.5) * -growth * z0 + (0.0 if target == 1 else ((1 - target) / (1 - start)) ** 0.5) * z
    points = [((half_log_snr(a) - half_log_snr(start)) / h, old - z0) for old, a in history[1:]]
    if corrector is not None:
        points.append((1.0, corrector - z0))
    for weight, (ratio, difference) in zip(_weights([r for r, _ in points], h), points, strict=True):
        z = z - target**0.5 * growth * weight / ratio * difference
    return z


def _weights(ratios: list[float], h: float) -> list[float]:
    """The coefficients that make the update exact for polynomials: equation 4, R a = phi(h) / B(h)."""
    if len(ratios) == 1:
        return [0.5]  # the published code's choice for one unknown: exact in the limit of short steps
    if not ratios:
        return []
    phi, rhs = math.expm1(-h) / -h - 1, []
    for k, factorial in enumerate(itertools.accumulate(range(1, len(ratios) + 1), lambda a, b: a * b), start=1):
        rhs.append(phi * factorial / math.expm1(-h))
        phi = phi / -h - 1 / math.factorial(k + 1)
    matrix = torch.tensor([[r**k for r in ratios] for k in range(len(ratios))], dtype=torch.float64)
    return torch.linalg.solve(matrix, torch.tensor(rhs, dtype=torch.float64)).tolist()
