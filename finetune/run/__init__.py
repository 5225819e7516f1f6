"""What a training is, keeps and says: no folder is given to two, and nothing is lost when it is killed."""
