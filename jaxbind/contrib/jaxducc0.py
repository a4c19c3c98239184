"""DUCC's transforms as JAX functions: FFT, Hartley, HEALPix synthesis, radio interferometry.

The functions that JAXbind 1.3 has under this name, with their signatures: each returns a list
with one array. They are linear, so derivatives of any order follow from the function and its
transpose. DUCC: https://gitlab.mpcdf.mpg.de/mtr/ducc
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import ducc0
import numpy as np

from jaxbind import get_linear_call, load_kwargs

__all__ = ["c2c", "genuine_fht", "get_healpix_sht", "get_wgridder", "nalm"]


def _complextype(dtype: Any) -> np.dtype:
    return np.result_type(dtype, np.complex64)


def _realtype(dtype: Any) -> np.dtype:
    return np.zeros((), dtype).real.dtype


# Fourier and Hartley transforms -----------------------------------------------------------------
#
# Their matrices are symmetric, F[k, x] = exp(-2 pi i k x / n) = F[x, k], so each is its own
# transpose (the inverse is its adjoint, which is something else).


def _transformed_axes(ndim: int, kwargs: dict[str, Any]) -> list[int]:
    """The axes to transform: ``axes`` counts the dimensions that are not batched."""
    batched = kwargs.pop("batch_axes", None)
    own = [a for a in range(ndim) if batched is None or a not in batched[0]]
    axes = kwargs.pop("axes", None)
    if axes is None:
        return own
    wanted = [axes] if isinstance(axes, int) else axes
    return [own[a] for a in wanted]


def _c2c(out: Sequence, args: Sequence, kwargs_dump: Any) -> None:
    kwargs = load_kwargs(kwargs_dump)
    axes = _transformed_axes(args[0].ndim, kwargs)
    ducc0.fft.c2c(args[0], axes=axes, out=out[0], **kwargs)


def _genuine_fht(out: Sequence, args: Sequence, kwargs_dump: Any) -> None:
    kwargs = load_kwargs(kwargs_dump)
    axes = _transformed_axes(args[0].ndim, kwargs)
    ducc0.fft.genuine_fht(args[0], axes=axes, out=out[0], **kwargs)


def _same(x: Any, *, batch_axes: Any = None, **kwargs: Any) -> tuple:
    del kwargs
    newest = batch_axes[0][-1] if batch_axes and batch_axes[0] else ()
    return ((x.shape, x.dtype, newest),)


c2c = get_linear_call(_c2c, _c2c, _same, _same, func_can_batch=True)
c2c.__doc__ = ducc0.fft.c2c.__doc__

genuine_fht = get_linear_call(_genuine_fht, _genuine_fht, _same, _same, func_can_batch=True)
genuine_fht.__doc__ = ducc0.fft.genuine_fht.__doc__


# Spherical harmonics on the HEALPix sphere ------------------------------------------------------
#
# The coefficients of a real field, a_lm for m >= 0 with a_l0 real, are packed into real numbers
# x such that |x|² is the sum of |a_lm|² over all m: the m = 0 ones as they are, then real and
# imaginary parts of the others times sqrt(2). In them DUCC's adjoint is the transpose.


def nalm(lmax: int, mmax: int) -> int:
    """The number of complex coefficients a_lm with 0 <= m <= mmax and m <= l <= lmax."""
    return (mmax + 1) * (mmax + 2) // 2 + (mmax + 1) * (lmax - mmax)


def _alm2realalm(alm: Any, lmax: int, dtype: Any, out: np.ndarray | None = None) -> np.ndarray:
    """Pack complex coefficients ``(ncomp, nalm)`` into real ones ``(ncomp, 2 nalm - lmax - 1)``."""
    packed = np.empty((alm.shape[0], 2 * alm.shape[1] - lmax - 1), dtype) if out is None else out
    zonal = lmax + 1
    packed[:, :zonal] = alm[:, :zonal].real
    packed[:, zonal::2] = np.sqrt(2.0) * alm[:, zonal:].real
    packed[:, zonal + 1 :: 2] = np.sqrt(2.0) * alm[:, zonal:].imag
    return packed


def _realalm2alm(packed: np.ndarray, lmax: int, dtype: Any) -> np.ndarray:
    """The inverse of `_alm2realalm`."""
    zonal = lmax + 1
    alm: Any = np.empty((packed.shape[0], (packed.shape[1] + zonal) // 2), dtype)
    alm[:, :zonal] = packed[:, :zonal]
    alm[:, zonal:].real = packed[:, zonal::2] * np.sqrt(0.5)
    alm[:, zonal:].imag = packed[:, zonal + 1 :: 2] * np.sqrt(0.5)
    return alm


def _rings(args: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The ring geometry in the dtypes that DUCC wants, also where JAX runs in 32 bits."""
    theta, phi0, nphi, ringstart = args
    return {
        "theta": theta.astype(np.float64),
        "phi0": phi0.astype(np.float64),
        "nphi": nphi.astype(np.uint64),
        "ringstart": ringstart.astype(np.uint64),
    }


def _synthesis(out: Sequence, args: Sequence, kwargs_dump: Any) -> None:
    kwargs = load_kwargs(kwargs_dump)
    kwargs.pop("nside")
    alm = _realalm2alm(args[4], kwargs["lmax"], _complextype(args[4].dtype))
    ducc0.sht.synthesis(map=out[0], alm=alm, **_rings(args[:4]), **kwargs)


def _adjoint_synthesis(out: Sequence, args: Sequence, kwargs_dump: Any) -> None:
    kwargs = load_kwargs(kwargs_dump)
    kwargs.pop("nside")
    alm = ducc0.sht.adjoint_synthesis(map=args[4], **_rings(args[:4]), **kwargs)
    _alm2realalm(alm, kwargs["lmax"], args[4].dtype, out[0])


def _components(spin: int) -> int:
    return 1 if spin == 0 else 2


def _map_shape(*args: Any, nside: int, spin: int, **kwargs: Any) -> tuple:
    del kwargs
    return (((_components(spin), 12 * nside**2), args[4].dtype),)


def _alm_shape(*args: Any, lmax: int, mmax: int, spin: int, **kwargs: Any) -> tuple:
    del kwargs
    return (((_components(spin), 2 * nalm(lmax, mmax) - lmax - 1), args[4].dtype),)


_healpix = get_linear_call(
    _synthesis, _adjoint_synthesis, _map_shape, _alm_shape, first_n_args_fixed=4
)


def get_healpix_sht(nside: int, lmax: int, mmax: int, spin: int, nthreads: int = 1) -> partial:
    """Spherical-harmonic synthesis on the HEALPix sphere.

    Args:
      nside: resolution; the map has ``12 nside²`` pixels, in the RING scheme.
      lmax: largest degree of the coefficients (inclusive).
      mmax: largest order (inclusive).
      spin: 0 for a scalar field; otherwise there are two components.
      nthreads: threads that DUCC uses; 0 for as many as the machine has.

    Returns:
      A function from real packed coefficients of shape
      ``(ncomp, 2 * nalm(lmax, mmax) - lmax - 1)`` to a list with the map, ``(ncomp, npix)``. The
      packing: first the m = 0 coefficients, then real and imaginary parts of the others,
      alternating and times sqrt(2).
    """
    rings = ducc0.healpix.Healpix_Base(nside, "RING").sht_info()
    return partial(
        _healpix,
        rings["theta"],
        rings["phi0"],
        rings["nphi"],
        rings["ringstart"],
        nside=nside,
        lmax=lmax,
        mmax=mmax,
        spin=spin,
        nthreads=nthreads,
    )


# Radio interferometry ---------------------------------------------------------------------------


def _double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64, copy=False)


def _dirty2vis(out: Sequence, args: Sequence, kwargs_dump: Any) -> None:
    uvw, freq, dirty = args
    kwargs = load_kwargs(kwargs_dump)
    del kwargs["npix_x"], kwargs["npix_y"]
    ducc0.wgridder.experimental.dirty2vis(
        uvw=_double(uvw), freq=_double(freq), dirty=dirty, vis=out[0], **kwargs
    )


def _vis2dirty(out: Sequence, args: Sequence, kwargs_dump: Any) -> None:
    """DUCC gives the adjoint: ``Aᵀ v = conj(Aᴴ conj(v))``, and the image is real."""
    uvw, freq, vis = args
    ducc0.wgridder.experimental.vis2dirty(
        uvw=_double(uvw),
        freq=_double(freq),
        vis=vis.conj(),
        dirty=out[0],
        **load_kwargs(kwargs_dump),
    )


def _vis_shape(uvw: Any, freq: Any, dirty: Any, **kwargs: Any) -> tuple:
    del kwargs
    return (((uvw.shape[0], freq.shape[0]), _complextype(dirty.dtype)),)


def _dirty_shape(
    uvw: Any, freq: Any, vis: Any, *, npix_x: int, npix_y: int, **kwargs: Any
) -> tuple:
    del uvw, freq, kwargs
    return (((npix_x, npix_y), _realtype(vis.dtype)),)


_wgridder = get_linear_call(_dirty2vis, _vis2dirty, _vis_shape, _dirty_shape, first_n_args_fixed=2)


def get_wgridder(
    *,
    pixsize_x: float,
    pixsize_y: float,
    npix_x: int,
    npix_y: int,
    epsilon: float,
    do_wgridding: bool,
    nthreads: int = 1,
    flip_v: bool = False,
    verbosity: int = 0,
    **kwargs: Any,
) -> partial:
    """The response of a radio interferometer: sky brightness to visibilities.

    Args:
      pixsize_x: size of a pixel in radians.
      pixsize_y: the same in y.
      npix_x: number of pixels in x.
      npix_y: number of pixels in y.
      epsilon: requested accuracy of the gridding.
      do_wgridding: whether to correct for the w term.
      nthreads: threads that DUCC uses; 0 for as many as the machine has.
      flip_v: whether to flip the sign of the v coordinates.
      verbosity: 0 for silence.
      kwargs: handed to ``ducc0.wgridder.experimental.dirty2vis``.

    Returns:
      A function of ``uvw`` of shape ``(nrow, 3)`` in metres, ``freq`` of shape ``(nchan,)`` in
      hertz and the image of shape ``(npix_x, npix_y)`` in jansky per steradian; it returns a
      list with the visibilities, ``(nrow, nchan)``. It is differentiable in the image.
    """
    return partial(
        _wgridder,
        pixsize_x=pixsize_x,
        pixsize_y=pixsize_y,
        npix_x=npix_x,
        npix_y=npix_y,
        epsilon=epsilon,
        do_wgridding=do_wgridding,
        nthreads=nthreads,
        flip_v=flip_v,
        verbosity=verbosity,
        **kwargs,
    )
