"""Noise schedules, few-step schedules, the reverse step and the pretraining loss."""
