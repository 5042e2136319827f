"""`python -m mla_ray` is `mla`."""

from mla_ray.cli import main

if __name__ == "__main__":
    main()
