"""Requests: routes, balances and calls. The hot path; no database, no engine, no lock."""
