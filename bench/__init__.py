"""Measurements of speed, size and memory."""
