"""The composition root and the jobs behind the commands."""
