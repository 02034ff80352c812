"""Classifies sentences with what a run saved; Transformers alone loads it.

Usage: python scripts/classify.py runs/x "sentence" ...
"""

from __future__ import annotations

import sys

from transformers import pipeline

if __name__ == "__main__":
    folder, *sentences = sys.argv[1:]
    classify = pipeline("text-classification", model=folder)
    for sentence, prediction in zip(sentences, classify(sentences), strict=True):
        print(f"{prediction['label']} ({prediction['score']:.2f})  {sentence}")
