"""From a prompt to the tokens that follow it."""
