"""The parameters of `router`; params.yaml says what each does."""

from crawl2cart.core.params import Positive, Section, Share


class Router(Section):
    C: Positive
    abstain_threshold: Share
