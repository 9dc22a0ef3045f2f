"""What can go wrong between here and the Hub."""

from mimi_export.errors import MimiExportError


class HubError(MimiExportError, OSError):
    """The Hugging Face Hub refuses, cannot be reached, or gives back something else than was sent."""

    exit_code = 11
