"""XLA's flags for tests: programs that compile as quickly as they can, of which most run once on tiny arrays."""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0"
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    # Emitters by way of MLIR, which later versions always use and this one can do without, compile for three times as long.
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
