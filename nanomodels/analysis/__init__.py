"""Looking inside a model, and comparing it."""
