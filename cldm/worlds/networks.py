"""What the small networks that judge pictures of the worlds share: their block, their training, their files."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ldm.random import generator
from ldm.weights import load_weights, read_metadata

Net = TypeVar("Net", bound=nn.Module)
Batches = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""(step, its generator) -> images and classes."""


def block(c_in: int, c_out: int) -> nn.Sequential:
    """3 x 3 convolution, norm of 8 groups, SiLU."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.SiLU())


def train_classifier(net: Net, name: str, steps: int, seed: int, lr: float, batch: Batches) -> Net:
    """Cross-entropy, AdamW, one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    with tqdm(range(steps), desc=f"training the {name}", unit="step") as bar:
        for step in bar:
            images, classes = batch(step, generator(name, seed, step))
            loss = F.cross_entropy(net(images), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return net.eval()


def read_network(net: Net, name: str, path: str | Path) -> Net:
    """The network with the weights in a file of `python -m cldm NAME`. ValueError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"judge={path}: there is no such file; make it with `python -m cldm {name}`")
    if read_metadata(path).get("stage") != name:
        raise ValueError(f"judge={path} is no file of `python -m cldm {name}`")
    load_weights(net, path)
    return net.float().eval()
