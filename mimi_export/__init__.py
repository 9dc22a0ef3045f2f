"""Exact streaming ONNX models from Kyutai's Mimi neural audio codec."""

__version__ = "0.1.0"
