"""Side by side with the peers: `python -m benchmarks [ONLY ...]` prints ratios and writes results.json."""
