"""Instances: starts, adopts, scales and stops them."""
