"""``python -m sft_rl`` is the console script ``sft-rl``."""

import sys

from sft_rl.cli import main

sys.exit(main())
