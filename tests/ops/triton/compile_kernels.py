"""Compiles the kernels of harmonic layers for a GPU of compute capability 9.0; needs no GPU, but Triton without its interpreter.

Run by test_compilation.py: ``python compile_kernels.py FOLDER``, the folder of ``monai_gmr``.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

TYPES = dict.fromkeys(("taps", "starts"), "*i32") | dict.fromkeys(("factors", "bias", "chiral", "partial"), "*fp32")
FLOATS = ("smoothing", "scale", "chiral_scale")
LAYER = {"CHANNELS": 20, "OUTPUTS": 12, "FIRST": 4, "WIDTH": 24, "RESPONSES": 88, "COLUMNS": 16, "COMPONENTS": 3}
LAYER |= {"NORMS": 4, "PRODUCTS": 3, "SHELLS": 4, "TAPS": 27, "ORDERS": (16, 3, 0, 0, 0, 8, 5, 16, 48, 3), "ADDS": True}
BLOCKS = {
    "BLOCK_VOXELS": 64,
    "BLOCK_COLUMNS": 16,
    "BLOCK_CHANNELS": 16,
    "PRECISION": "ieee",
}
PLAIN = {"SLOTS": 1, "PRODUCTS": 0, "BACKWARD": False, "BIAS": True, "CHIRAL": False, "LINEAR": False, "STORES": False}
KEPT = {"SLOTS": 4, "BACKWARD": True, "BIAS": False, "CHIRAL": True, "LINEAR": True, "STORES": True}


def compile_kernel(kernel, **constants):
    # here: a suite without Triton collects this file, too
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, known, signature = kernel.arg_names, {**LAYER, **BLOCKS, "PRODUCT_TYPE": tl.bfloat16, **constants}, {}
    for name in names:
        short = name.removesuffix("_pointer")
        signature[name] = TYPES.get(short, "*bf16") if short != name else ("fp32" if name in FLOATS else "i32")
        signature[name] = "constexpr" if name.isupper() else signature[name]
    source = ASTSource(kernel, signature, {name: known[name] for name in names if name.isupper()})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


def main(folder):
    # packages whose own imports, MONAI among them, take seconds
    for name in ("monai_gmr", "monai_gmr.ops", "monai_gmr.ops.triton"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(Path(folder).joinpath(*name.split(".")[1:]))]
    forward = importlib.import_module("monai_gmr.ops.triton.harmonic_kernels")
    backward = importlib.import_module("monai_gmr.ops.triton.harmonic_gradient_kernels")
    for each in (
        compile_kernel(forward.harmonic_kernel, **PLAIN),
        compile_kernel(forward.harmonic_kernel, **KEPT),
        compile_kernel(backward.input_gradient_kernel),
        compile_kernel(backward.weight_gradient_kernel),
    ):
        print(each.metadata.name, "mma" in each.asm["ptx"])


if __name__ == "__main__":
    main(sys.argv[1])
