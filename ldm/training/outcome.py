"""What a run finds, in one place: each callback is handed it with the module."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

History = dict[str, list[float]]
""""step", and a list for each figure."""


@dataclass
class Outcome:
    """Written by one each, read by any.

    looks: figures and losses of held-out items (Watch). shown: the newest of those that the progress bar shows.
    hint_use: whether the hint is used (HintUse), empty for other stages than control.
    average: of the weights that train, by name (EMA); empty without one.
    facts: what each checkpoint says of its run beside weights and states, plain containers only.
    metadata: what each exported file says of itself beside its settings; None leaves out.
    """

    looks: History = field(default_factory=lambda: {"step": []})
    shown: tuple[str, float] | None = None
    hint_use: History = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str | None] = field(default_factory=dict)
