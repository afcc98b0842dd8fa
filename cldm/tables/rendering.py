"""A finished table as Markdown, LaTeX, CSV and a picture."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cldm.tables.records import Record, commits
from cldm.tables.spec import Column, Spec
from cldm.tables.statistics import CONFIDENCE
from cldm.tables.writing import Cell, Line

ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}
NOTHING = "–"


def number(value: float, digits: int, sign: bool = False) -> str:
    """Fixed digits; a dash for nan."""
    return f"{value:{'+' if sign else ''}.{digits}f}" if math.isfinite(value) else NOTHING


def text(cell: Cell | None, digits: int) -> str:
    """mean ± standard deviation, with n in brackets where training seeds are missing."""
    if cell is None or not cell.n:
        return NOTHING if cell is None else f"{NOTHING} (0 of {cell.expected})"
    spread = f" ± {number(cell.std, digits)}" if math.isfinite(cell.std) else ""
    count = f" ({cell.n} of {cell.expected})" if cell.n < cell.expected else ""
    ceiling = f" of {number(cell.ceiling, digits)}" if cell.ceiling is not None else ""
    return number(cell.mean, digits) + spread + ceiling + count


def markdown(spec: Spec, lines: Sequence[Line], found: Sequence[Record], command: str, told: Sequence[str]) -> str:
    """The table, its differences, and how it was made. told: what was allowed although it makes it weaker."""
    heads = [f"{column.title}{ARROWS[column.better]}" for column in spec.columns]
    rows = [[line.title, *(_bold(cell, c.digits) for cell, c in zip(line.cells, spec.columns, strict=True))]
            for line in lines]  # fmt: skip
    parts = [f"### {spec.title}", spec.about.strip(), _grid(["", *heads], rows)]
    parts.append(
        f"Mean ± sample standard deviation over n = {len(spec.seeds)} training seeds ({_join(spec.seeds)}). Bold: "
        f"better than every other row beyond Student's {CONFIDENCE:.0%} interval of the differences paired by seed."
    )
    if len(spec.rows) > 1:
        parts.append(_differences(spec, lines))
    parts.append(_origin(spec, found, command))
    parts += [f"**Allowed although it weakens the table:** {'; '.join(told)}."] if told else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _bold(cell: Cell | None, digits: int) -> str:
    return f"**{text(cell, digits)}**" if cell and cell.best else text(cell, digits)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[item.replace("|", "\\|") for item in row] for row in (head, *rows)]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:]))


def _join(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _differences(spec: Spec, lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        for column, cell in zip(spec.columns, line.cells, strict=True):
            if cell is None or (d := cell.difference) is None:
                continue
            intervals = [
                f"[{number(low, column.digits, True)}, {number(high, column.digits, True)}]"
                if math.isfinite(low) else NOTHING for low, high in (d.by_seed, d.by_item)
            ]  # fmt: skip
            rows.append([line.title, column.title, number(d.mean, column.digits, True), *intervals, str(d.n)])
    head = ["row", "column", "difference", f"t, {CONFIDENCE:.0%}", f"bootstrap, {CONFIDENCE:.0%}", "n"]
    return (
        f"Differences from {spec.reference}, paired by training seed (t) and by item (bootstrap, which says nothing of "
        f"other training seeds):\n\n{_grid(head, rows)}"
    )


def _origin(spec: Spec, found: Sequence[Record], command: str) -> str:
    facts = [f"Command: `{command}`", f"table file: `{_shown(spec.path)}`"]
    facts.append(f"commit: {_join([f'`{name}`' for name in commits(found)])}")
    for name in spec.evaluations:
        protocols = {r["protocol_hash"]: r for record in found if (r := record.evaluated[name])}
        for digest, results in protocols.items():
            p = results["protocol"]
            facts.append(
                f"evaluation {name}: {p['items']} items x noise seeds {p['noise_seeds']}, {p['steps']} steps, guidance "
                f"{p['guidance']}, scale {p['scale']}, protocol `{digest}`"
            )
    return "; ".join(facts) + "."


def _shown(path: Path | None) -> str:
    root = Path(__file__).parents[2]
    return str(path.relative_to(root) if path and path.is_relative_to(root) else path)


def latex(spec: Spec, lines: Sequence[Line]) -> str:
    """A tabular of booktabs."""
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", None: ""}
    body = [" & ".join(["", *(_tex(c.title) + arrows[c.better] for c in spec.columns)]) + r" \\", r"\midrule"]
    for i, line in enumerate(lines):
        if line.bound and not lines[i - 1].bound:
            body.append(r"\midrule")
        cells = []
        for cell, column in zip(line.cells, spec.columns, strict=True):
            shown = _tex(text(cell, column.digits)).replace("±", r"$\pm$").replace(NOTHING, "--")
            cells.append(rf"\textbf{{{shown}}}" if cell and cell.best else shown)
        body.append(" & ".join([_tex(line.title), *cells]) + r" \\")
    inner = "\n".join(["l" + "r" * len(spec.columns) + "}", r"\toprule", *body, r"\bottomrule"])
    return f"% {spec.title}\n\\begin{{tabular}}{{{inner}\n\\end{{tabular}}\n"


def _tex(string: str) -> str:
    for sign in "&%$#_{}":
        string = string.replace(sign, f"\\{sign}")
    return string


def to_csv(spec: Spec, lines: Sequence[Line], found: Sequence[Record]) -> str:
    """One line for each row, column and training seed (bounds have no seed), with the differences of the row."""
    runs = {(record.row.title, record.seed): str(record.run) for record in found}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["row", "column", "from", "setting", "metric", "seed", "value", "mean", "std", "n", "difference",
             "t_low", "t_high", "bootstrap_low", "bootstrap_high", "run"]  # fmt: skip
    writer.writerow(names)
    for line in lines:
        for column, cell in zip(spec.columns, line.cells, strict=True):
            if cell is None:
                continue
            d = cell.difference
            compared = [d.mean, *d.by_seed, *d.by_item] if d else []
            runs_of_cell: list[tuple[int | None, float]] = [*cell.values.items()]
            for seed, value in runs_of_cell or [(None, cell.mean)]:
                row = [line.title, column.title, column.source, column.setting, column.metric, seed, value,
                       cell.mean, cell.std, cell.n, *compared, *[""] * (5 - len(compared)),
                       "" if seed is None else runs[line.title, seed]]  # fmt: skip
                writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row])
    return out.getvalue()


def picture(spec: Spec, lines: Sequence[Line]) -> Image.Image:
    """A panel for each column: the value of every training seed, the mean, and the bounds as vertical lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, bounds = [line for line in lines if not line.bound], [line for line in lines if line.bound]
    across = min(4, len(spec.columns))
    down = math.ceil(len(spec.columns) / across)
    figure = Figure(figsize=(2.2 + 2.7 * across, down * (1.3 + 0.32 * len(rows))), layout="constrained", dpi=120)
    canvas = FigureCanvasAgg(figure)
    for i, column in enumerate(spec.columns):
        axes = figure.add_subplot(down, across, i + 1)
        _panel(axes, i, column, rows, bounds)
        axes.set_yticks(range(len(rows)), [row.title for row in rows] if i % across == 0 else [""] * len(rows))
    if bounds:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7,
                      frameon=False)  # fmt: skip
    figure.suptitle(spec.title, fontsize=10)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _panel(axes: Any, i: int, column: Column, rows: Sequence[Line], bounds: Sequence[Line]) -> None:
    for y, row in enumerate(rows):
        cell = row.cells[i]
        if cell is None or not cell.n:
            continue
        values = [*cell.values.values()]
        axes.plot(values, [y] * len(values), "o", color="tab:blue", alpha=0.45, markersize=5)
        axes.plot([cell.mean], [y], "|", color="black", markersize=14, markeredgewidth=2)
    for k, line in enumerate(bounds):
        cell = line.cells[i]
        if cell is not None:
            axes.axvline(cell.mean, color=f"C{k + 1}", linestyle=":", label=line.title)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(f"{column.title}{ARROWS[column.better]}", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3)
