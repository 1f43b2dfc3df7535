"""Versions: bundles become them, aliases point at them."""
