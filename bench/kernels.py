"""Speed of `quant.kernels` on this machine, as a multiple of `nn.Linear` in float32 and in bfloat16.

    python bench/kernels.py

One thread; all of a row's calls take turns, and the least time of each counts. 1 row is a token being decoded, 128 a
prompt. int4 has groups of 32, int8 a scale a row; "reference" is `QuantLinear` without a kernel, dequantizing to
bfloat16 at each call.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)  # in the place of bench/, whose quant.py is another

import torch
from torch import nn
from torch.nn import functional

from quant import kernels
from quant.grid import IntGrid
from quant.linear import QuantLinear

SHAPES = ((256, 768), (1024, 4096), (4096, 4096))
ROWS = (1, 128)
SECONDS = 1.0


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'layer':<12} {'rows':>4}  {'path':<14} {'us':>8} {'x float32':>10} {'x bfloat16':>11}")
    for n, k in SHAPES:
        linear = nn.Linear(k, n, bias=False)
        four, eight = (QuantLinear.round(linear, grid) for grid in (IntGrid(4), IntGrid(8, group_size=None)))
        paths: dict[str, kernels.Path | QuantLinear] = {"reference": four}
        for layer in (four, eight):
            for kind in kernels.PATHS[1:]:
                if (path := kind.of(layer, torch.bfloat16)) is not None:
                    paths[path.name] = path
        for rows in ROWS:
            x = torch.randn(rows, k, dtype=torch.bfloat16)
            timed: dict[str, Callable[[], object]] = {}
            for dtype in (torch.float32, torch.bfloat16):
                float_x, weight = x.to(dtype), linear.weight.to(dtype)
                timed[str(dtype)] = lambda x=float_x, w=weight: functional.linear(x, w)
            for name, path in paths.items():
                timed[name] = lambda path=path, x=x: path(x) if isinstance(path, QuantLinear) else path(x, None)
            seconds = kernels.alternate(timed, SECONDS)
            for name in paths:
                single, half = (seconds[str(dtype)] / seconds[name] for dtype in (torch.float32, torch.bfloat16))
                micro = seconds[name] * 1e6
                print(f"{n}x{k:<7} {rows:>4}  {name:<14} {micro:8.0f} {single:10.2f} {half:11.2f}")


if __name__ == "__main__":
    main()
