"""Train both stages for each language of a plan; prepare and encode the data that is missing.

ray job submit --working-dir . -- python -m jobs.acquire --config jobs/configs/emoji.yaml
"""

from mla_ray.cli.job.plan import run_steps

if __name__ == "__main__":
    run_steps("acquire")
