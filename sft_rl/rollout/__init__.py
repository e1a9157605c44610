"""From an env and a policy to trajectories."""
