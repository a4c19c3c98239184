"""Distribution functions and their inverses: DLMF 7, 8 and 13 give the densities.

With respect to shape parameters there is no closed form, except where one is listed.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxbind.contrib.special._elementary import xlog1py, xlogy
from jaxbind.contrib.special._error import erfcx
from jaxbind.contrib.special._gamma import beta_density, betaln, gamma_density
from jaxbind.contrib.special._hypergeometric import hyp0f1, hyp1f1
from jaxbind.contrib.special._table import density, integers, special

SHAPE, UNIT, POSITIVE = (0.6, 12), (0.05, 0.95), (0.1, 12)
ROOT = np.sqrt(2 * np.pi)

# Normal -----------------------------------------------------------------------------------------

NORMAL = "DLMF 7.1.2"

ndtr = special(
    "ndtr", lambda x: jnp.exp(-(x**2) / 2) / ROOT, source=NORMAL, domain=((-5, 5),), analytic=True
)


def _log_ndtr(x):
    """The density over the distribution; far left both underflow, but not erfcx (DLMF 7.2.4)."""
    left = jnp.real(x) < -1
    near, far = jnp.where(left, 0, x), jnp.where(left, x, -1)
    density = jnp.exp(-(near**2) / 2 - log_ndtr(near)) / ROOT
    return jnp.where(left, 2 / (ROOT * erfcx(-far / np.sqrt(2))), density)


log_ndtr = special(
    "log_ndtr",
    _log_ndtr,
    source=NORMAL,
    domain=((-20, 5),),
    analytic=True,
)
ndtri = special("ndtri", lambda p: ROOT * jnp.exp(ndtri(p) ** 2 / 2), source=NORMAL, domain=(UNIT,))
ndtri_exp = special(
    "ndtri_exp",
    lambda y: 1 / _log_ndtr(ndtri_exp(y)),
    source=NORMAL,
    domain=((-20, -0.1),),
)
nrdtrimn = special(
    "nrdtrimn",
    lambda p, std, x: -std * ROOT * jnp.exp(ndtri(p) ** 2 / 2),
    lambda p, std, x: -ndtri(p),
    lambda p, std, x: jnp.ones_like(x),
    source=NORMAL,
    domain=(UNIT, (0.2, 4), (-5, 5)),
)
nrdtrisd = special(
    "nrdtrisd",
    lambda mn, p, x: -1 / ndtri(p),
    lambda mn, p, x: -(x - mn) / ndtri(p) ** 2 * ROOT * jnp.exp(ndtri(p) ** 2 / 2),
    lambda mn, p, x: 1 / ndtri(p),
    source=NORMAL,
    domain=((-5, 0), (0.6, 0.95), (1, 5)),
)

# Chi-squared, gamma and Poisson -----------------------------------------------------------------

GAMMA = "DLMF 8.8.13"


def _chi_density(v, x):
    return gamma_density(v / 2, x / 2) / 2


chdtr = special(
    "chdtr", None, lambda v, x: _chi_density(v, x), source=GAMMA, domain=(SHAPE, POSITIVE)
)
chdtrc = special(
    "chdtrc", None, lambda v, x: -_chi_density(v, x), source=GAMMA, domain=(SHAPE, POSITIVE)
)
chdtri = special(
    "chdtri",
    None,
    lambda v, p: -1 / _chi_density(v, chdtri(v, p)),
    source=GAMMA,
    domain=(SHAPE, UNIT),
)
gdtr = special(
    "gdtr",
    lambda a, b, x: x * gamma_density(b, a * x),
    None,
    lambda a, b, x: a * gamma_density(b, a * x),
    source=GAMMA,
    domain=((0.2, 3), SHAPE, POSITIVE),
)
gdtrc = special(
    "gdtrc",
    lambda a, b, x: -x * gamma_density(b, a * x),
    None,
    lambda a, b, x: -a * gamma_density(b, a * x),
    source=GAMMA,
    domain=((0.2, 3), SHAPE, POSITIVE),
)
gdtria = special(
    "gdtria",
    lambda p, b, x: 1 / (x * gamma_density(b, gdtria(p, b, x) * x)),
    None,
    lambda p, b, x: -gdtria(p, b, x) / x,
    source=GAMMA,
    domain=(UNIT, SHAPE, POSITIVE),
)
gdtrix = special(
    "gdtrix",
    lambda a, b, p: -gdtrix(a, b, p) / a,
    None,
    lambda a, b, p: 1 / (a * gamma_density(b, a * gdtrix(a, b, p))),
    source=GAMMA,
    domain=((0.2, 3), SHAPE, UNIT),
)


def _poisson(k, m):
    return gamma_density(jnp.floor(k) + 1, m)


pdtr = special(
    "pdtr", None, lambda k, m: -_poisson(k, m), source=GAMMA, domain=(integers(0, 9), POSITIVE)
)
pdtrc = special(
    "pdtrc", None, lambda k, m: _poisson(k, m), source=GAMMA, domain=(integers(0, 9), POSITIVE)
)
pdtri = special(
    "pdtri",
    None,
    lambda k, y: -1 / _poisson(k, pdtri(k, y)),
    source=GAMMA,
    domain=(integers(0, 9), UNIT),
)

# Binomial, negative binomial, F and Student's t -------------------------------------------------

BETA = "DLMF 8.17.1"


def _binomial(k, n, p):
    """-d/dp of the probability of at most k successes, 0 where that is certain."""
    k = jnp.floor(k)
    inside = k < n
    least = jnp.where(inside, n - k, 1)
    return jnp.where(inside, beta_density(k + 1, least, p), 0)


_OF_BINOMIAL = (integers(0, 5), integers(6, 12))
bdtr = special(
    "bdtr",
    None,
    None,
    lambda k, n, p: -_binomial(k, n, p),
    source=BETA,
    domain=(*_OF_BINOMIAL, UNIT),
)
bdtrc = special(
    "bdtrc",
    None,
    None,
    lambda k, n, p: _binomial(k, n, p),
    source=BETA,
    domain=(*_OF_BINOMIAL, UNIT),
)
bdtri = special(
    "bdtri",
    None,
    None,
    lambda k, n, y: -1 / _binomial(k, n, bdtri(k, n, y)),
    source=BETA,
    domain=(*_OF_BINOMIAL, UNIT),
)


def _negative_binomial(k, n, p):
    return beta_density(n, jnp.floor(k) + 1, p)


_OF_NEGATIVE = (integers(0, 8), integers(1, 8))
nbdtr = special(
    "nbdtr",
    None,
    None,
    lambda k, n, p: _negative_binomial(k, n, p),
    source=BETA,
    domain=(*_OF_NEGATIVE, UNIT),
)
nbdtrc = special(
    "nbdtrc",
    None,
    None,
    lambda k, n, p: -_negative_binomial(k, n, p),
    source=BETA,
    domain=(*_OF_NEGATIVE, UNIT),
)
nbdtri = special(
    "nbdtri",
    None,
    None,
    lambda k, n, y: 1 / _negative_binomial(k, n, nbdtri(k, n, y)),
    source=BETA,
    domain=(*_OF_NEGATIVE, UNIT),
)


def _f_density(dfn, dfd, x):
    whole = dfd + dfn * x
    y, rest = dfn * x / whole, dfd / whole
    return beta_density(dfn / 2, dfd / 2, y, rest) * rest * (dfn / whole)


fdtr = special(
    "fdtr",
    None,
    None,
    lambda dfn, dfd, x: _f_density(dfn, dfd, x),
    source=BETA,
    domain=(SHAPE, SHAPE, (0.1, 5)),
)
fdtrc = special(
    "fdtrc",
    None,
    None,
    lambda dfn, dfd, x: -_f_density(dfn, dfd, x),
    source=BETA,
    domain=(SHAPE, SHAPE, (0.1, 5)),
)
fdtri = special(
    "fdtri",
    None,
    None,
    lambda dfn, dfd, p: 1 / _f_density(dfn, dfd, fdtri(dfn, dfd, p)),
    source=BETA,
    domain=((1, 12), (1, 12), (0.1, 0.9)),
)


def _t_density(df, t):
    """For infinitely many degrees of freedom that of the normal distribution."""
    normal = jnp.isposinf(df)
    df = jnp.where(normal, 1, df)
    scale = xlog1py(-(df + 1) / 2, t**2 / df)
    students = jnp.exp(scale - betaln(df / 2, 0.5)) / jnp.sqrt(df)
    return jnp.where(normal, jnp.exp(-(t**2) / 2) / ROOT, students)


stdtr = special(
    "stdtr", None, lambda df, t: _t_density(df, t), source=BETA, domain=(SHAPE, (-5, 5))
)
stdtrit = special(
    "stdtrit",
    None,
    lambda df, p: 1 / _t_density(df, stdtrit(df, p)),
    source=BETA,
    domain=(SHAPE, (0.1, 0.9)),
)

# Noncentral distributions -----------------------------------------------------------------------

MIXTURE = "mixture of central ones (Johnson, Kotz and Balakrishnan 1995, chapters 29 to 31)"


# SciPy has their densities, too, for its `stats`; of shapes they need no derivative
_ncx2_pdf = density(
    "_ncx2_pdf",
    lambda x, df, nc: (
        ((df - 2) * _ncx2_pdf(x, df, nc) + nc * _ncx2_pdf(x, df + 2, nc)) / (2 * x)
        - _ncx2_pdf(x, df, nc) / 2
    ),
    None,
    lambda x, df, nc: (_ncx2_pdf(x, df + 2, nc) - _ncx2_pdf(x, df, nc)) / 2,
)


def _nct_slope(t, df, nc):
    """Under the integral over w = χ/√df, where f(t) is that of w φ(t w - nc): each w is one more
    degree of freedom."""
    ratio = jnp.exp(-betaln(df / 2, 0.5)) * jnp.sqrt(2 * np.pi * (df + 1)) / df
    one, two = jnp.sqrt((df + 1) / df), jnp.sqrt((df + 2) / df)
    return nc * ratio * _nct_pdf(one * t, df + 1, nc) - t * two * _nct_pdf(two * t, df + 2, nc)


_nct_pdf = density("_nct_pdf", _nct_slope, None, None)


def _ncf_above(f, dfn, dfd, nc):
    """The density at the same beta variable of ``dfn + 2``, of which is made what ``nc`` adds."""
    return _ncf_pdf(f * dfn / (dfn + 2), dfn + 2, dfd, nc) * dfn / (dfn + 2)


def _ncf_slope(f, dfn, dfd, nc):
    own = (dfn / 2 - 1) * dfd / f - (dfd / 2 + 1) * dfn
    above = nc * dfd / (2 * f) * _ncf_above(f, dfn, dfd, nc)
    return (own * _ncf_pdf(f, dfn, dfd, nc) + above) / (dfd + dfn * f)


_ncf_pdf = density(
    "_ncf_pdf",
    _ncf_slope,
    None,
    None,
    lambda f, dfn, dfd, nc: (_ncf_above(f, dfn, dfd, nc) - _ncf_pdf(f, dfn, dfd, nc)) / 2,
)


def _noncentral_chi_density(df, nc, x):
    """SciPy's; for small arguments of I_v by 0F1 (DLMF 10.39.9), which holds at 0, too."""
    near = nc * x < 1
    series = _chi_density(df, x) * jnp.exp(-nc / 2) * hyp0f1(df / 2, jnp.where(near, nc * x / 4, 0))
    return jnp.where(near, series, _ncx2_pdf(jnp.where(near, 1, x), df, jnp.where(near, 1, nc)))


chndtr = special(
    "chndtr",
    lambda x, df, nc: _noncentral_chi_density(df, nc, x),
    None,
    lambda x, df, nc: -_noncentral_chi_density(df + 2, nc, x),
    source=MIXTURE,
    domain=(POSITIVE, (1, 12), (0.2, 6)),
)


def _chndtrix_in_nc(p, df, nc):
    x = chndtrix(p, df, nc)
    return _noncentral_chi_density(df + 2, nc, x) / _noncentral_chi_density(df, nc, x)


chndtrix = special(
    "chndtrix",
    lambda p, df, nc: 1 / _noncentral_chi_density(df, nc, chndtrix(p, df, nc)),
    None,
    _chndtrix_in_nc,
    source=MIXTURE,
    domain=((0.1, 0.9), (1, 12), (0.2, 6)),
)


def _of_beta(dfn, dfd, f):
    """The variable of the beta distribution behind F, and 1 minus it."""
    whole = dfd + dfn * f
    return dfn * f / whole, dfd / whole


def _noncentral_f_density(dfn, dfd, nc, f):
    """SciPy's; near 0 by 1F1, which holds at 0, too."""
    z = nc / 2 * _of_beta(dfn, dfd, f)[0]
    near = z < 1
    more = hyp1f1((dfn + dfd) / 2, dfn / 2, jnp.where(near, z, 0))
    series = jnp.exp(-nc / 2) * _f_density(dfn, dfd, f) * more
    return jnp.where(near, series, _ncf_pdf(jnp.where(near, 1, f), dfn, dfd, nc))


def _ncfdtr_in_nc(dfn, dfd, nc, f):
    """By 1F1; where that is large by two densities (DLMF 13.3.3)."""
    (y, rest), a, b = _of_beta(dfn, dfd, f), dfn / 2, dfd / 2
    near = nc / 2 * y < 100
    weight = jnp.exp(xlogy(a, y) + xlogy(b, rest) - jnp.log(a) - betaln(a, b) - nc / 2)
    small = -weight / 2 * hyp1f1(a + b, a + 1, jnp.where(near, nc / 2 * y, 0))
    g = jnp.where(near, 1, f)
    both = _ncf_above(g, dfn, dfd, nc) - _of_beta(dfn, dfd, g)[0] * _ncf_pdf(g, dfn, dfd, nc)
    return jnp.where(near, small, -both * (dfd + dfn * g) / (dfd * dfn))


_OF_F = ((1, 12), (1, 12), (0.2, 6))
ncfdtr = special(
    "ncfdtr",
    None,
    None,
    _ncfdtr_in_nc,
    lambda dfn, dfd, nc, f: _noncentral_f_density(dfn, dfd, nc, f),
    source=MIXTURE,
    domain=(*_OF_F, (0.1, 5)),
)


def _ncfdtri_in_nc(dfn, dfd, nc, p):
    f = ncfdtri(dfn, dfd, nc, p)
    return -_ncfdtr_in_nc(dfn, dfd, nc, f) / _noncentral_f_density(dfn, dfd, nc, f)


ncfdtri = special(
    "ncfdtri",
    None,
    None,
    _ncfdtri_in_nc,
    lambda dfn, dfd, nc, p: 1 / _noncentral_f_density(dfn, dfd, nc, ncfdtri(dfn, dfd, nc, p)),
    source=MIXTURE,
    domain=(*_OF_F, (0.1, 0.9)),
)


def _noncentral_t_density(df, nc, t):
    return _nct_pdf(t, df, nc)


nctdtr = special(
    "nctdtr",
    None,
    None,
    lambda df, nc, t: _noncentral_t_density(df, nc, t),
    source=MIXTURE,
    domain=((1, 12), (-2, 2), (-4, 4)),
)
nctdtrit = special(
    "nctdtrit",
    None,
    None,
    lambda df, nc, p: 1 / _noncentral_t_density(df, nc, nctdtrit(df, nc, p)),
    source=MIXTURE,
    domain=((1, 12), (-2, 2), (0.1, 0.9)),
)

# Transformations to normality -------------------------------------------------------------------


def _of_log(log, lmbda):
    """d/dλ of (exp(λ log) - 1)/λ = log² ∫ t exp(λ log t) dt over 0 to 1 (DLMF 13.4.1).

    Of the logarithm of 0 it is that of -1/λ, for λ > 0.
    """
    of_zero = jnp.isneginf(log) & (lmbda > 0)
    log = jnp.where(of_zero, -1, log)
    value = log**2 / 2 * hyp1f1(2.0, 3.0, lmbda * log)
    return jnp.where(of_zero, 1 / jnp.where(of_zero, lmbda, 1) ** 2, value)


BOX = "derivative of the definition (Box and Cox 1964), DLMF 13.4.1"
_POWER = (-2, 2)

boxcox = special(
    "boxcox",
    lambda x, lmbda: x ** (lmbda - 1),
    lambda x, lmbda: _of_log(jnp.log(x), lmbda),
    source=BOX,
    domain=((0.2, 5), _POWER),
)
boxcox1p = special(
    "boxcox1p",
    lambda x, lmbda: (1 + x) ** (lmbda - 1),
    lambda x, lmbda: _of_log(jnp.log1p(x), lmbda),
    source=BOX,
    domain=((-0.8, 4), _POWER),
)


def _inverse_box(plus):
    def in_y(y, lmbda):
        return plus(y, lmbda) ** (1 - lmbda)

    def in_lmbda(y, lmbda):
        x = plus(y, lmbda)
        return -_of_log(jnp.log(x), lmbda) * x ** (1 - lmbda)

    return in_y, in_lmbda


inv_boxcox = special(
    "inv_boxcox",
    *_inverse_box(lambda y, lmbda: inv_boxcox(y, lmbda)),
    source=BOX,
    domain=((-0.4, 0.4), _POWER),
)
inv_boxcox1p = special(
    "inv_boxcox1p",
    *_inverse_box(lambda y, lmbda: 1 + inv_boxcox1p(y, lmbda)),
    source=BOX,
    domain=((-0.4, 0.4), _POWER),
)


def _tukey(x, lmbda):
    """1/Q'(p) with the quantiles Q(p) = (p^λ - (1-p)^λ)/λ, which end at 1/λ for λ > 0."""
    outside = abs(x) * lmbda >= 1
    p = jnp.where(outside, 0.5, tklmbda(x, lmbda))
    return jnp.where(outside, 0, 1 / (p ** (lmbda - 1) + (1 - p) ** (lmbda - 1)))


tklmbda = special(
    "tklmbda",
    _tukey,
    None,
    source="its quantile function (Tukey 1962)",
    domain=((-0.4, 0.4), (0.2, 2)),
)
exprel = special(
    "exprel",
    lambda x: hyp1f1(2.0, 3.0, x) / 2,
    source="DLMF 13.4.1",
    domain=((-6, 6),),
)
