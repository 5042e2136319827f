"""Evaluate the packs of a plan, and the native in English, on the test split.

ray job submit --working-dir . -- python -m jobs.evaluate --config jobs/configs/emoji.yaml
"""

from mla_ray.cli.job.plan import run_steps

if __name__ == "__main__":
    run_steps("evaluate")
