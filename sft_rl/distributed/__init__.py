"""Ray: rollout actors and their pool. The rest of the method does not know it exists."""
