"""Publishing on the Hugging Face Hub: what may go there, its model card, sending it, and checking what arrived.

    subjects    the directories to publish, each with the parity report that vouches for exactly its files
    card        the model card: the prose of `card.md`, the programs in `snippets`, tables of manifests and reports
    plan        what is new, changed and unchanged on the Hub
    upload      one commit or pull request; then the download, compared and verified

`client` is all that knows `huggingface_hub`; nothing here needs PyTorch.
"""
