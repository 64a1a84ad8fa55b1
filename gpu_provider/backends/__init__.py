"""Backends: what computes a batch."""
