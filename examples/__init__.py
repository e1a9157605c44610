"""Examples of extending sft-rl with your own module."""
