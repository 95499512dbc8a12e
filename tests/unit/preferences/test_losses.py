"""What a preference loss does with missing counts and with nothing to average."""

import pytest
import torch

from crawl2cart.preferences.losses import mean_divergence, preference_loss


@pytest.mark.parametrize("kind", ["ipo", "sigmoid_norm"])
def test_a_loss_per_token_wants_the_counts(kind):
    nats = torch.zeros(2)
    with pytest.raises(ValueError, match="chosen_tokens"):
        preference_loss(nats, nats, nats, nats, 0.1, kind)


def test_the_divergence_of_no_tokens_is_refused():
    logits = torch.zeros(1, 4, 8)
    counted = torch.tensor([[True, False, False, False]])  # no place predicts the first token
    with pytest.raises(ValueError, match="no counted token"):
        mean_divergence(logits, logits, counted)
