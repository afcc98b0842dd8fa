"""Draw docs/sampler_convergence.png: error against steps of the deterministic samplers, on an exact score.

python benchmarks/sampler_convergence.py
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tests.ldm.test_samplers import DETERMINISTIC, SCHEDULE, arrival, exact_flow

STEPS = (5, 8, 12, 20, 32, 50, 80, 128, 200, 320, 500)
MARKS = dict(zip(DETERMINISTIC, "osD^vP", strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/sampler_convergence.png"))
    args = parser.parse_args()
    exact = exact_flow()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, sampler in DETERMINISTIC.items():
        errors = [(arrival(sampler, SCHEDULE.timesteps(n, "karras")) - exact).abs().mean().item() for n in STEPS]
        style = "--" if name == "euler" else "-"  # it lies on ddim
        axes.loglog(STEPS, errors, style, marker=MARKS[name], markersize=4, label=name)
        print(name, *(f"{error:.2g}" for error in errors))
    for order, anchor in ((1, 0.4), (2, 0.6)):
        axes.loglog(STEPS, [anchor * (STEPS[0] / n) ** order for n in STEPS], color="0.6", linestyle=":", linewidth=1)
        axes.annotate(f"order {order}", (STEPS[-1], anchor * (STEPS[0] / STEPS[-1]) ** order), color="0.4", fontsize=8)
    axes.set(xlabel="steps (heun: two evaluations each)", ylabel="mean error of the latents at timestep 0",
             title="Convergence on a Gaussian mixture with the exact score")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
