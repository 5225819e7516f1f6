"""Shows which hand-ins are alike and in what. It accuses nobody: a person looks, asks, and decides."""
