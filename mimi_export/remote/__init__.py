"""Talking to the Hugging Face Hub: what its errors are called here, and no token for anybody else.

words      one clean line out of whatever a server or a library said; standard library only
library    `huggingface_hub` with limits: silent, no token to another host, no endless pages or pauses
"""
