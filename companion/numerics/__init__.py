"""Numerics: solvers of differential equations, derivatives of fields, optimal transport, probability paths."""
