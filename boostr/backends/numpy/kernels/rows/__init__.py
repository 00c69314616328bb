"""What works row by row: norms, rope, activations, embedding."""
