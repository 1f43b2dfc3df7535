"""Background work as rows under a lease."""
