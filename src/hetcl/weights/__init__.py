"""Weights in and out: what a MODEL argument names."""
