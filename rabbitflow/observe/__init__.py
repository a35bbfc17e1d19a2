"""Seeing what happens: logs, metrics, health."""
