"""Shortcut fine-tuning of diffusion samplers by policy gradient (SFT-PG), on Ray.

Importing this package is cheap: nothing below pulls in torch or Ray until it is used.
"""

__version__ = "0.1.0"
