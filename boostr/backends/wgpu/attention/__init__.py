"""Attention, its gradient, and the paged cache."""
