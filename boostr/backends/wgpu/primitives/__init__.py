"""The primitives: elementwise, copies, reductions, indexing, plain products."""
