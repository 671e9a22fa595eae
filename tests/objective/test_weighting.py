"""Weightings of the loss by time."""

import pytest
import torch

from rfdit.objective import MinSNRWeighting

T = torch.tensor([0.05, 0.2, 0.5, 0.9])


def test_min_snr_is_the_papers_weight_on_the_loss_of_the_data() -> None:
    """min(SNR, gamma) |x - x_hat|^2 with x - x_hat = -t (v - v_hat)."""
    snr = ((1 - T) / T) ** 2
    torch.testing.assert_close(MinSNRWeighting(gamma=5.0)(T), snr.clamp(max=5.0) * T**2)


def test_gamma_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"weighting\.gamma=0\.0 must be positive"):
        MinSNRWeighting(gamma=0.0)
