"""What lies on disk: whole files, pipeline folders and their weights, the folder of a run, checkpoints."""
