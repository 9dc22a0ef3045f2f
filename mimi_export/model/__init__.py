"""Mimi in PyTorch: its weights, step functions, and the streaming graphs made of them."""
