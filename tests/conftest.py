from hypothesis import settings

# The same examples on every run, and no verdicts about speed on a busy machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
