"""Figures: histograms, the registry that keeps them by endpoint, and what reads it."""
