"""Headrace: a self-hosted function-as-a-service platform."""
