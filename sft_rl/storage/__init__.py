"""What a run writes and reads back: its folder, checkpoints, metrics, the cache; also by URL."""
