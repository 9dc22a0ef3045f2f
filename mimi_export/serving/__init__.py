"""Live streams for many: a model repository for Triton."""
