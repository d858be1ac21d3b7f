"""TroL in JAX: each decoder layer runs twice with the same weights, and a learned gate mixes the two passes.

The mathematics is in `trol_jax.ops` (start with `traversal`), the networks are in `trol_jax.models`. This module
imports nothing, so that programs can read their flags before JAX starts.
"""

__version__ = "0.1.0"
