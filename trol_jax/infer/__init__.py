"""Answering: prefill of the prompt with two passes, decoding with one, and batching."""
