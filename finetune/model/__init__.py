"""The base model, in whatever form it comes, and what a trained file says of itself."""
