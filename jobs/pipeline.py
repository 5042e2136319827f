"""Run all steps for every language of a plan: prepare, encode, acquire, evaluate, index.

ray job submit --working-dir . -- python -m jobs.pipeline --config jobs/configs/emoji.yaml
"""

from mla_ray.cli.job.plan import run_steps
from mla_ray.pipeline.pipeline import STEPS

if __name__ == "__main__":
    run_steps(*STEPS)
