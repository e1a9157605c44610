"""Ray Tune: which step count is worth it, and with which learning rates."""
