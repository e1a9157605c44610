"""A run's folder, on a disk or at a URL."""
