"""Backend "triton": kernels for GPUs."""
