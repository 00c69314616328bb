"""Attention and the paged cache."""
