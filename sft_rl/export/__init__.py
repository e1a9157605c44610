"""A few-step sampler for others."""
