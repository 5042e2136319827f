"""Embed a plan's images and captions into its collections.

ray job submit --working-dir . -- python -m jobs.index --config jobs/configs/emoji.yaml
"""

from mla_ray.cli.job.plan import run_steps

if __name__ == "__main__":
    run_steps("index")
