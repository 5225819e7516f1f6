"""Pictures and captions in folders, archives and on the hub, and what is computed from them once."""
