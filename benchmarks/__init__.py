"""Benchmarks: this library against what one would write without it. See README.md here."""
