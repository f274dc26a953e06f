"""Measures of answers, rankings and differences: numpy and the standard library, never torch."""
