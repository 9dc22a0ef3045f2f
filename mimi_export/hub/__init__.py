"""Publishing on the Hugging Face Hub: what may go there, its model card, sending it, and checking what arrived.

    subjects    the directories to publish, each with the parity report that vouches for exactly its files
    card        the model card, generated from manifests and reports; snippets of it in `snippets`
    plan        what is new, changed and unchanged on the Hub
    upload      one commit or pull request; then the download, compared and verified

`client` is all that knows `huggingface_hub`; nothing here needs PyTorch.
"""
