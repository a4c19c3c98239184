"""Bindings of real libraries, one module per library; each needs that library installed."""
