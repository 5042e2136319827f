"""Train an English native on emoji: the module form of `mla job pretrain_native`."""

from mla_ray.cli.job.pretrain_native import run_pretraining

if __name__ == "__main__":
    run_pretraining()
