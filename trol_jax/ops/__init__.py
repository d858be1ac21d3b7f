"""Pure functions on arrays: the mathematics of TroL, without Flax, configs or I/O.

Axis letters, used in every docstring and einsum of the project:

    B batch      T query tokens   S key tokens (cache slots)   D model width   V vocabulary
    N heads      K key/value heads   G = N / K query heads a key/value head    H head size
    F hidden of the MLP   L layers   P patches (image tokens)   R rank of a low-rank pair   C channels
"""
