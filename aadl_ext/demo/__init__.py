"""The main job: a regression network trained with and without acceleration, on real data."""
