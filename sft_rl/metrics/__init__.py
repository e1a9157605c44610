"""How far generated samples are from real data; every number with its noise floor."""
