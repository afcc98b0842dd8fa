"""Milliseconds of each attention backend at Stable Diffusion 1.5's sizes: what `backend: auto` goes by.

    python benchmarks/attention.py                       512 px, fp32 and bf16, forward and training
    python benchmarks/attention.py --device cuda --dtypes fp16 bf16

8 heads; the tokens of every level of a 512 px image (`--pixels`), to themselves and to the 77 of a prompt. The backends
take turns, and the least of the rounds is stated: other work on the machine only ever adds time.
"""

import argparse
import importlib.util
import time

import torch

from ldm.attention import attend

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEVELS = {1: 40, 2: 80, 4: 160, 8: 160}  # by how much the latents are shrunk: channels of each of the 8 heads


def milliseconds(backend: str, q: torch.Tensor, kv: torch.Tensor, trains: bool) -> float:
    """One forward, and backward where it trains."""
    inputs = [t.detach().requires_grad_(trains) for t in (q, kv, kv)]
    if q.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.set_grad_enabled(trains):
        out = attend(*inputs, backend)
    if trains:
        out.backward(q)
    if q.is_cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=[*DTYPES], default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    xformers = args.device == "cuda" and importlib.util.find_spec("xformers") is not None
    backends = ["sdpa", "einsum", *(["xformers"] if xformers else [])]
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, batch {args.batch}")
    print(
        "dtype  what      queries  keys  channels  " + "".join(f"{name:>10}" for name in backends) + "  einsum / sdpa"
    )
    for dtype in args.dtypes:
        for trains in (False, True):
            for shrink, channels in LEVELS.items():
                tokens = (args.pixels // 8 // shrink) ** 2
                for keys in (tokens, 77):
                    q, kv = (
                        torch.randn(args.batch, 8, n, channels, device=args.device, dtype=DTYPES[dtype])
                        for n in (tokens, keys)
                    )
                    times: dict[str, list[float]] = {name: [] for name in backends}
                    for _ in range(args.rounds + 1):  # the first warms up
                        for name in backends:
                            times[name].append(milliseconds(name, q, kv, trains))
                    least = {name: min(values[1:]) for name, values in times.items()}
                    print(
                        f"{dtype:6} {'training' if trains else 'forward':9} {tokens:7}  {keys:4}  {channels:8}  "
                        + "".join(f"{ms:10.2f}" for ms in least.values())
                        + f"  {least['einsum'] / least['sdpa']:13.2f}"
                    )


if __name__ == "__main__":
    main()
