"""Measuring: reading questions, asking, parsing and scoring answers, and the report."""
