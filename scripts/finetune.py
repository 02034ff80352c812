"""Trains what a config describes; the file that `accelerate launch` starts in every process.

Usage: accelerate launch --config_file accelerate_configs/x.yaml scripts/finetune.py configs/x.yaml [key=value ...]
"""

from __future__ import annotations

import sys

from hf_freeze.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
