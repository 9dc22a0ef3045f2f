"""Streaming step functions in PyTorch: `(x, state) -> (y, state)`, one idea a module.

They hold copies of upstream's weights and never touch upstream classes. Each is exact: any split of a signal into
calls gives what one call over the whole signal gives.
"""
