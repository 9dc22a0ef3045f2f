"""From a checkpoint to finished variant directories."""
