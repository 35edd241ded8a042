"""Sound as a picture and back: the short-time Fourier transform, its mel bands, and what can be heard of them alone.

**Frames.** A sound of T samples gives T / hop frames. Frame m is the transform of w(i) s(m hop + i - (N - hop) / 2),
with the Hann window w of N samples and the sound mirrored at its ends. The way back adds up the windowed frames and
divides by what the squares of the windows add up to,

    s(t) = sum_m w(t - m hop) frame_m(t - m hop) / sum_m w(t - m hop)^2,

which is exact for the transform of a sound, and of anything else the sound whose transform is nearest (Griffin & Lim
1984, equation 6). The mean of a frame and its bin at half the rate are real: they share bin 0, the one as its real and
the other as its imaginary part, so that N / 2 complex bins hold everything.

**Mel bands.** mel(f) = 2595 log10(1 + f / 700); band b is a triangle around the b-th of evenly spaced mels. Each is
integrated over a bin, so that no band is empty however narrow, and |S| of the bins from 1 on is averaged with it.

**Griffin-Lim** finds a sound for mel bands without a model: the most even magnitudes that have the bands, and phases
by going back and forth (`settle`), which never increases the distance between what was asked for and what the sound
has. Here with the momentum of Perraudin et al. 2013 (WASPAA), .99. It is what a vocoder has to beat.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FLOOR = 1e-5
"""The least mean of a band that is told from silence."""


def frames(sound: Tensor, window: int, hop: int) -> Tensor:
    """The transform, complex (n, window / 2, samples / hop), of sounds (n, samples), a multiple of hop."""
    margin = (window - hop) // 2
    padded = F.pad(sound[:, None], (margin, window - hop - margin), mode="reflect")[:, 0]
    whole = torch.fft.rfft(
        padded.unfold(1, window, hop) * torch.hann_window(window, dtype=sound.dtype, device=sound.device)
    )
    shared = torch.complex(whole.real[..., :1], whole.real[..., -1:])
    return torch.cat([shared, whole[..., 1:-1]], -1).mT


def sound_of(spectrum: Tensor, window: int, hop: int) -> Tensor:
    """The sound (n, samples) whose transform is nearest to a spectrum (n, window / 2, frames)."""
    shape = torch.hann_window(window, dtype=spectrum.real.dtype, device=spectrum.device)
    shared = spectrum.mT[..., :1]
    ends = [part.to(spectrum.dtype) for part in (shared.real, shared.imag)]
    cut = torch.fft.irfft(torch.cat([ends[0], spectrum.mT[..., 1:], ends[1]], -1), n=window) * shape
    count, length = cut.shape[1], window + (cut.shape[1] - 1) * hop

    def added(x: Tensor) -> Tensor:
        return F.fold(x.mT, (1, length), (1, window), stride=(1, hop))[:, 0, 0]

    whole = added(cut) / added(shape.square().expand(1, count, window)).clamp_min(1e-8)
    margin = (window - hop) // 2
    return whole[:, margin : margin + count * hop]


@lru_cache(16)
def mel_bands(bands: int, window: int, rate: int) -> Tensor:
    """Weights (bands, window / 2) of the bins in each mel band, adding up to 1."""
    fine = 32  # parts of a bin that a triangle is integrated over
    hertz = (np.arange(fine * window // 2) + 0.5 - fine / 2).clip(0) * rate / window / fine
    mels = 2595 * np.log10(1 + hertz / 700)
    places = np.linspace(0, 2595 * np.log10(1 + rate / 1400), bands + 2)
    rising = (mels - places[:-2, None]) / np.diff(places)[:-1, None]
    falling = (places[2:, None] - mels) / np.diff(places)[1:, None]
    parts = np.minimum(rising, falling).clip(0).reshape(bands, -1, fine).sum(-1)
    parts[:, 0] = 0.0
    # the lowest may lie below the first bin, which then stands for it
    parts[parts.sum(1) == 0, 1] = 1.0
    return torch.from_numpy(parts / parts.sum(1, keepdims=True)).float()


def log_mels(spectrum: Tensor, bands: int, rate: int) -> Tensor:
    """(ln(max(mean |S| over a band, 1e-5)) + 4) / 3: (n, bands, frames), about the size of 1, of a spectrum."""
    weights = mel_bands(bands, 2 * spectrum.shape[1], rate)
    return ((weights @ spectrum.abs().float()).clamp_min(FLOOR).log() + 4) / 3


def magnitudes(mels: Tensor, window: int, rate: int, near: Tensor | None = None) -> Tensor:
    """|S| (n, window / 2, frames) that have log mels m (n, bands, frames), nearest to `near` or as even as can be.

    Of all with W |S| = exp(3 m - 4), W the bands, they have the least sum of W' 1 (|S| ln(|S| / near) - |S| + near), so
    none is below 0: by eight rounds of |S| <- |S| exp(W' ln(exp(3 m - 4) / W |S|) / W' 1) (SMART, Byrne 1993, IEEE
    Trans. Image Processing 2(1), 96). Then bands are .1 to .4 dB off, where they were 4 to 40. What no band holds, the
    mean, stays.
    """
    weights, wanted = mel_bands(mels.shape[1], window, rate).to(mels), (3 * mels - 4).exp()
    share = weights.sum(0)[:, None].clamp_min(1e-6)
    size = weights.mT @ wanted / share if near is None else near
    for _ in range(8):
        size = size * (weights.mT @ (wanted / (weights @ size).clamp_min(FLOOR**2)).log() / share).exp()
    return size


def settle(turned: Tensor, size: Tensor, window: int, hop: int, rounds: int, momentum: float = 0.0) -> Tensor:
    """Phases, complex of size 1, that agree better with each other at magnitudes `size`, from those of `turned`."""
    before = torch.zeros_like(turned)
    turned = turned / turned.abs().clamp_min(1e-12)
    for _ in range(rounds):
        again = frames(sound_of(size * turned, window, hop), window, hop)
        turned = again + momentum * (again - before)
        turned = turned / turned.abs().clamp_min(1e-12)
        before = again
    return turned


def griffin_lim(mels: Tensor, window: int, hop: int, rate: int, rounds: int = 32) -> Tensor:
    """Sounds (n, frames x hop) of log mels (n, bands, frames) by phases that agree with one another; see the file."""
    size = magnitudes(mels, window, rate)
    draw = torch.Generator().manual_seed(0)
    turned = torch.polar(torch.ones_like(size), 2 * torch.pi * torch.rand(size.shape, generator=draw))
    return sound_of(size * settle(turned, size, window, hop, rounds, 0.99), window, hop)
