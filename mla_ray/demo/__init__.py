"""`mla demo`: one language on emoji from data to report, and what `mla serve` shows of it."""
