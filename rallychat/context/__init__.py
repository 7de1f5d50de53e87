"""Which turns go into the prompt, and as which tokens. `types` has the values, `strategies` the ways by name."""
