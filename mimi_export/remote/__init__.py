"""The Hugging Face Hub from here: variants without PyTorch, one clean line for what it says, no token elsewhere.

words      one clean line out of whatever a server or a library said, and the error that a status stands for
retry      trying again what may pass
http       GET with the standard library, within limits
variants   a variant into the cache, every file checked
library    `huggingface_hub` within the same limits, where it is installed
"""
