"""Which turns go into the prompt, and as which tokens."""
