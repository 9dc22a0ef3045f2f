"""Audio files, code files, and generated signals."""
