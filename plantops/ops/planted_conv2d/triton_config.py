"""Tile sizes of the Triton kernels of planted_conv2d, by shape class; a caller may give its own instead."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from plantops.ops._triton import cdiv, power_of_two

SMALLEST = 16  # side of a tile that tensor cores take
PROGRAMS = 264  # two for each multiprocessor of a large GPU: what the weight gradient's pixels are split for
MAX_REGISTERS = 240  # of a thread: eight warps of them fit one multiprocessor
SCALAR_N = 64  # where the left factor is not read in vectors
LEFT_FACTOR = 64  # reading it costs a tile about as much as so many columns
STEPS = 4  # of a program at least, so that splitting costs less than it brings


@dataclass(frozen=True)
class Config:
    """A program computes block_m x block_n results, block_k products at a time. `split`: programs that share the
    products of one weight gradient; None: as many as fill the GPU."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split: int | None = None

    def options(self) -> dict[str, int]:
        """What a launch of a kernel with these tiles is given."""
        tile = {"M": self.block_m, "N": self.block_n, "K": self.block_k}
        return tile | {"num_warps": self.num_warps, "num_stages": self.num_stages, "max_registers": MAX_REGISTERS}


@dataclass(frozen=True)
class Limits:
    """The largest tile for a dtype."""

    block_m: int
    block_n: int
    block_k: int
    num_stages: int


# Where there are tensor cores (half precision, TF32), float32 and float64 without them.
HALF = Limits(128, 128, 32, 3)
TF32 = Limits(128, 64, 16, 3)
SINGLE = Limits(64, 32, 16, 1)
DOUBLE = Limits(32, 32, 16, 2)
GATHERED_M = 64  # where a result or an entry takes more loads than one there are fewer of them for a thread
RESULTS_OF_FOUR_WARPS = 4096
LOADS_OF_FOUR_WARPS = {False: 2048, True: 1024}  # elements of a tile of the left factor, by gathered


def limits(dtype: torch.dtype, precision: str) -> Limits:
    """The class of a dtype; `precision` is that of float32: "tf32" or "ieee"."""
    if dtype == torch.float64:
        return DOUBLE
    if dtype == torch.float32:
        return TF32 if precision == "tf32" else SINGLE
    return HALF


def side(size: int, most: int) -> int:
    """The side of a tile for a dimension of `size`."""
    return min(most, max(SMALLEST, power_of_two(size)))


def width(size: int, most: int) -> int:
    """The side of a tile for filters: little is left over in the last one, and the left factor is seldom read again."""
    sides = [SMALLEST << i for i in range(most.bit_length()) if SMALLEST << i <= most]
    return min(sides, key=lambda n: (cdiv(size, n) * (n + LEFT_FACTOR), n))


def tile(dtype: torch.dtype, precision: str, m: int, n: int, k: int, gathered: bool = False, vector: int = 1) -> Config:
    """The configuration for m x n results, where the products run over k entries at a time; `gathered`: a factor is
    a gradient behind ReLU or pooling, or the results take an addend; `vector`: entries of the left factor that one
    load reads. Entries that are loaded one by one take the registers of the widest tiles."""
    most = limits(dtype, precision)
    widest = most.block_n if vector > 1 else min(most.block_n, SCALAR_N)
    block_m = side(m, min(most.block_m, GATHERED_M) if gathered else most.block_m)
    block_n, block_k = width(n, widest), side(k, most.block_k)
    few = block_m * block_k <= LOADS_OF_FOUR_WARPS[gathered] and block_m * block_n <= RESULTS_OF_FOUR_WARPS
    num_warps = 4 if few else 8
    return Config(block_m, block_n, block_k, num_warps, most.num_stages)


def splits(config: Config, m: int, n: int, k: int) -> int:
    """Over how many programs the k products of each of m x n results are spread. A function of the shape alone, so
    results repeat bit for bit on any GPU of one kind."""
    if config.split is not None:
        return config.split
    tiles = cdiv(m, config.block_m) * cdiv(n, config.block_n)
    return max(1, min(PROGRAMS // tiles, cdiv(k, config.block_k) // STEPS))
