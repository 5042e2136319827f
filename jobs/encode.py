"""Compute the frozen features that a plan's languages need and the store lacks, on many actors.

ray job submit --working-dir . -- python -m jobs.encode --config jobs/configs/emoji.yaml
"""

from mla_ray.cli.job.plan import run_steps

if __name__ == "__main__":
    run_steps("encode")
