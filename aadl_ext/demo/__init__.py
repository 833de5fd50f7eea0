"""Two minutes that show where acceleration helps and where not, on problems that people know."""
