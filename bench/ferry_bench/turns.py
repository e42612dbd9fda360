"""Whose turn it is: contenders alternate, and no one is always first."""


def turned(items, round_no):
    """The items, turned by one place per round."""
    start = round_no % len(items)
    return items[start:] + items[:start]
