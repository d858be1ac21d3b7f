"""Conversion between the released PyTorch checkpoints and ours. This package holds nothing yet.

What will come: exact conversion both ways. Rule tables (name pattern, path in our tree, a named invertible transform)
for each part of a released model, and one engine that applies any table in either direction, so that import followed
by export gives the same bits. All problems of a checkpoint are collected and reported at once.

PyTorch may be imported here, inside functions only: reading a checkpoint must not need it.
"""
