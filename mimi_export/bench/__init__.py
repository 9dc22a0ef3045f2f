"""The benchmark: every way to run Mimi, measured side by side in turns on one machine."""
