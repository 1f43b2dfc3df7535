"""Engines that run instances."""
