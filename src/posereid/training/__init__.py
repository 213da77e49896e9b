"""Joint training, re-ID training, checkpoints."""
