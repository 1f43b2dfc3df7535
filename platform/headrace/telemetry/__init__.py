"""Records and metrics of invocations."""
