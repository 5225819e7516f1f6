"""Where the LoRA sits, how it is trained, and its files."""
