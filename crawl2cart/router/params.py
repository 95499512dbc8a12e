"""The parameters of `router`."""

from crawl2cart.core.params import Positive, Section, Share


class Router(Section):
    C: Positive
    abstain_threshold: Share
