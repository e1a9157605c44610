"""From trajectories to better networks: one update of each, and the loop around them."""
