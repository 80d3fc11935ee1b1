"""From a checkpoint folder to a model, and back to files."""
