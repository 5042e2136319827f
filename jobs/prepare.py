"""Check and tokenize the tables of a plan's languages, block by block.

ray job submit --working-dir . -- python -m jobs.prepare --config jobs/configs/emoji.yaml
"""

from mla_ray.cli.job.plan import run_steps

if __name__ == "__main__":
    run_steps("prepare")
