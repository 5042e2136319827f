"""The two stages, NLT and LE: settings, preparation, the loop, and runs on Ray Train."""
