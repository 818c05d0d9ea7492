"""How often an actor does something else than it thinks best."""


def epsilon_ladder(base: float, alpha: float, index: int, count: int) -> float:
    """Actor i's constant epsilon, ``base ** (1 + alpha * i / (count - 1))`` (Horgan et al. 2018, section 4).

    Actor 0 explores most; one actor alone has ``base``.
    """
    return float(base ** (1.0 + alpha * index / max(1, count - 1)))
