"""Values that change over a run."""


def linear(schedule: tuple[float, float], progress: float) -> float:
    """From ``schedule[0]`` to ``schedule[1]`` as ``progress`` goes from 0 to 1; constant beyond."""
    start, end = schedule
    return start + (end - start) * min(max(progress, 0.0), 1.0)
