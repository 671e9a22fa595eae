"""python -m tests.support.gpu.compiled DEVICE: loss and gradients of compiled blocks are the eager ones'."""

import sys

import torch

from rfdit.model.acceleration import compile_blocks
from tests.support.gpu.gradients import assert_near, build, loss_and_gradients

# Bounds as of `assert_near`; in bf16 the compiler rounds less often than autocast does.
CASES = [("dit", False, 2e-4), ("dit", True, 0.05), ("mmdit", True, 0.05)]


def main() -> None:
    device = torch.device(sys.argv[1])
    for kind, bf16, bound in CASES:
        eager, compiled = build(kind), build(kind)
        compile_blocks(compiled)
        expected, found = (loss_and_gradients(each, kind, device, bf16=bf16) for each in (eager, compiled))
        assert_near(found, expected, bound)
        print(f"{kind} {'bf16' if bf16 else 'fp32'}: equal within {bound:g}", flush=True)


if __name__ == "__main__":
    main()
