"""What can be known of the Triton kernel without a GPU: that it compiles, and what it asks of the hardware."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

HOPPER = 90
"""Compute capability 9.0, times ten."""


class Resources(NamedTuple):
    """What one thread of the compiled kernel needs."""

    registers: int
    stack_bytes: int
    spilled_bytes: int
    """Local memory: what did not fit into registers."""
    instructions: int
    """Length of the machine code, loops counted once."""


def compiled(num_experts: int, top_k: int, dtype: str, capability: int = HOPPER) -> Any:
    """The kernel compiled down to machine code ("fp32" or "bf16" scores); ``.asm`` holds "ptx" and "cubin"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from alflb.kernels import triton_

    constants = triton_.constants(num_experts, top_k, write_experts=True)
    signature = {"scores": f"*{dtype}", "bias": f"*{dtype}", "experts": "*i32", "load": "*i64", "dual": "*fp64"}
    signature |= {"num_tokens": "i32", "row_stride": "i32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(triton_.route_tokens, signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=triton_.OPTIONS)


def resources(kernel: Any) -> Resources:
    """Read off the machine code by NVIDIA's tool in Triton's wheel."""
    import triton

    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage, code = (
            subprocess.run([tool, option, str(cubin)], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = (int(number) for number in found.groups())
    return Resources(registers, stack, local, len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+\S", code, re.MULTILINE)))
