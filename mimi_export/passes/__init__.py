"""Passes over ONNX graphs, one a file, on the pass classes of onnx-ir: what a pass requires, does and ensures."""
