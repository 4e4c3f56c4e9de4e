"""Which kernels a GPU runs with: measured by `sweep`, kept by `cache`."""
