"""Backend "cpp": kernels in C++ for CPUs."""
