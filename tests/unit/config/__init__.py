"""Tests of what the user writes."""
