"""Live streams for many: a model repository for Triton, and a WebSocket server for one machine."""
