"""What a variant is: geometry, network, state, manifest, recipes. The standard library only."""
