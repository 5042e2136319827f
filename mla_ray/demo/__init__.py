"""`mla demo`, which runs all steps for one language on emoji, and the showcase of `mla serve`."""
