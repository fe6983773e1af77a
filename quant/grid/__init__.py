"""Number grids: which numbers there are, and how a real number gets one. The only folder that rounds.

A grid is a set of levels and a way to scale them. A weight w in a group with step s and offset m is

    w = s l + m,      l a level, held as a small integer, its code

| grid                  | levels                                     | s, m of a group                              |
|-----------------------|--------------------------------------------|----------------------------------------------|
| `IntGrid` symmetric   | -2^(b-1) .. 2^(b-1) - 1   (8: -127 .. 127) | fp16                                         |
| `IntGrid` asymmetric  | 0 .. 2^b - 1                               | fp16, fp16 minimum                           |
| `FloatGrid` e4m3 e5m2 | the finite numbers of an 8-bit float       | float32 of a row, tensor or 128 x 128        |
| `FloatGrid` e2m1 "mx" | 0 .5 1 1.5 2 3 4 6 and their negatives     | a power of two for 32 (OCP MX: e8m0)         |
| `FloatGrid` e2m1 "nv" | the same                                   | e4m3 for 16, divided by one float32 (NVFP4)  |
| `FloatGrid` nf4       | quantiles of a normal distribution         | fp16                                         |
| `KGrid`               | as integers; 2, 4 and 5 bits asymmetric    | 4 to 8-bit integers times an fp16 for 256    |

**Full range, signed scale.** A two's complement integer has one level more below zero than above. The usual symmetric
grid drops it (s = max|w| / (2^(b-1) - 1)); here the longer tail of the group gets it: s = peak / -2^(b-1), where peak
is the entry of the largest magnitude with its sign, so s may be negative. At 2 bits that is four levels instead of
three, for free; llama.cpp's Q4_0 and compressed-tensors' pack-quantized both hold it as it is. At 8 bits the extra
level buys 0.4 % of a step, and -128 overflows int8 dot products in some kernels, so 8 bits uses -127 .. 127.

**Scales are rounded to what the format stores before any code is chosen**, so the codes are optimal for the scale that
will be used, and exports are lossless. The asymmetric minimum is an fp16 value, not an integer zero point: that is what
Q4_1 stores, and s * zero_point is in general no fp16 number.

**Clipping.** The step is searched over shrinks of the min-max range from 1.0 to 0.8 for the least squared error of
the group. Shrinking further (down to 0.3, as AWQ and HQQ code bases do) lowers the weight error and raises the KL; at
2 bits any shrink does, at 6 and 8 bits none is needed: these keep min-max. An `importance` of each input weighs the
error; GPTQ passes none (it made GPTQ worse, because GPTQ moves later weights anyway).

**Odd shapes.** Where the group size does not divide a row, its last group is shorter. Runtimes whose blocks cannot be
(GGUF, MX and NV layouts) say so when they are asked to export.

Sources: uniform affine grids, Jacob et al. 2018 (arXiv 1712.05877) section 2.1; straight-through rounding with a
clipped range, Esser et al. 2020 (LSQ, arXiv 1902.08153) equations 1 to 3; signed scale, llama.cpp `quantize_row_q4_0`;
K-quants, llama.cpp `ggml-quants.c`; FP8, Micikevicius et al. 2022 (arXiv 2209.05433); MX, Rouhani et al. 2023 (arXiv
2310.10537) and the OCP MX specification 1.0; NF4, Dettmers et al. 2023 (QLoRA, arXiv 2305.14314) appendix E.
"""

from quant.grid.base import BLOCK as BLOCK
from quant.grid.base import SHRINKS as SHRINKS
from quant.grid.base import Grid as Grid
from quant.grid.base import GroupSize as GroupSize
from quant.grid.base import Scales as Scales
from quant.grid.base import Steps as Steps
from quant.grid.floating import FloatGrid as FloatGrid
from quant.grid.integer import IntGrid as IntGrid
from quant.grid.kquant import KGrid as KGrid
