"""Training: typed settings, recipes, and the loop that goes on exactly where it was interrupted."""
