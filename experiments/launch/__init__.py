"""Commands that start a run on a TPU pod, on GKE, on Slurm, or as processes of one machine."""
