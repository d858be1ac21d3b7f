"""XLA's options for programs that run once or twice: little optimisation, and results differ by rounding only."""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# Gone in later versions, which end at an option that they do not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
