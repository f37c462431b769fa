"""The torch renderer: against GalSim and closed forms, its gradients, and what it refuses."""

import subprocess
import sys

import galsim
import numpy as np
import pytest
import torch

from probdeblend.simulation import Camera, Components, render
from probdeblend.simulation.profiles import sersic_surface_brightness, widen_psf

CAMERA = Camera.candels_f160w()
PSF = CAMERA.psf[0].double()
SCALE = CAMERA.pixel_scale
CENTER = 63.5


def components(*rows, dtype=torch.float64):
    """Sources of one component each: flux, half_light_radius, index, axis ratio, angle, x, y."""
    values = torch.as_tensor(np.array(rows), dtype=dtype).reshape(len(rows), 1, 7)
    return Components(*values.unbind(-1), torch.ones(values.shape[:2], dtype=torch.bool))


def draw(*rows, dtype=torch.float64, psf=PSF, **options):
    return render(components(*rows, dtype=dtype), psf, pixel_scale=SCALE, **options)


def galsim_stamp(flux, radius, index, ratio, angle, x, y):
    tight = galsim.GSParams(
        folding_threshold=1e-3,
        stepk_minimum_hlr=20,
        maxk_threshold=1e-4,
        kvalue_accuracy=1e-7,
        maximum_fft_size=20000,
    )
    psf = galsim.InterpolatedImage(
        galsim.Image(PSF.numpy(), scale=SCALE), x_interpolant=galsim.Lanczos(31), flux=1.0, gsparams=tight
    )
    galaxy = galsim.Sersic(index, half_light_radius=radius, flux=flux, gsparams=tight)
    galaxy = galaxy.shear(q=ratio, beta=angle * galsim.radians)
    image = galsim.Convolve(galaxy, psf, gsparams=tight).drawImage(
        nx=128, ny=128, scale=SCALE, method="no_pixel", offset=(x - CENTER, y - CENTER)
    )
    return torch.from_numpy(image.array).double()


@pytest.mark.parametrize(
    ("index", "radius", "ratio", "x", "y", "peak", "flux"),
    [
        (0.5, 0.1, 0.2, 63.1, 64.0, 5e-5, 1e-5),
        (0.5, 1.2, 0.2, 100.2, 3.6, 1e-3, 2e-3),
        (0.7, 0.6, 0.5, 63.9, 63.2, 5e-5, 1e-5),
        (1.0, 0.1, 1.0, 123.2, 63.2, 5e-5, 1e-5),
        (1.0, 0.6, 0.2, 63.2, 120.9, 1e-3, 1e-3),
        (1.0, 1.2, 0.3, 63.8, 63.7, 1e-3, 1e-3),
        (2.5, 0.3, 0.4, 20.2, 90.7, 5e-5, 1e-4),
        (4.0, 0.1, 0.8, 63.2, 63.9, 5e-5, 1e-4),
        (4.0, 0.6, 0.5, 63.7, 5.2, 3e-4, 1e-3),
        pytest.param(6.0, 0.2, 0.6, 63.1, 63.3, 1e-4, 1e-3, marks=pytest.mark.slow),
        pytest.param(6.0, 1.2, 1.0, 63.6, 63.3, 1e-4, 3e-3, marks=pytest.mark.slow),
    ],
)
def test_agrees_with_galsim(index, radius, ratio, x, y, peak, flux):
    row = (2.0, radius, index, ratio, 0.7, x, y)
    expected = galsim_stamp(*row)
    image = draw(row)[0]
    assert (image - expected).abs().max() < peak * expected.max()
    assert (image.sum() - expected.sum()).abs() < 2 * flux


def test_index_between_the_nodes_and_small_radius():
    row = (1.0, 0.02, 1.2345, 0.7, 2.0, 70.2, 50.1)
    torch.testing.assert_close(draw(row)[0], galsim_stamp(*row), atol=2e-6, rtol=0)


def test_gaussian_is_exact():
    """A delta function as PSF leaves the sampled Gaussian itself, up to the frequencies beyond the grid."""
    image = draw((3.0, 0.4, 0.5, 0.6, 0.4, 60.2, 66.9), psf=torch.ones(1, 1))[0]
    pixels = torch.arange(128.0, dtype=torch.float64)
    dx, dy = (pixels - 60.2) * SCALE, (pixels[:, None] - 66.9) * SCALE
    along, across = np.cos(0.4) * dx + np.sin(0.4) * dy, np.cos(0.4) * dy - np.sin(0.4) * dx
    variance = 0.4**2 / (2 * np.log(2))
    exact = torch.exp(-(along**2 * 0.6 + across**2 / 0.6) / (2 * variance)) / (2 * np.pi * variance)
    torch.testing.assert_close(image, 3 * SCALE**2 * exact, atol=2e-7, rtol=0)


def test_half_of_the_light_is_within_the_half_light_radius():
    edges = torch.linspace(-14, 6, 20001, dtype=torch.float64).exp()[None]
    index = torch.tensor([0.5, 0.77, 1.0, 2.3, 4.0, 6.0], dtype=torch.float64)[:, None]
    one = torch.ones_like(index)
    profile = sersic_surface_brightness((0.3 * edges) ** 2, one, 0.3 * one, index)
    growth = torch.cumulative_trapezoid(profile * 2 * np.pi * (0.3 * edges) ** 2, edges.log())
    torch.testing.assert_close(growth[:, 13999], torch.full((6,), 0.5, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(growth[:5, -1], torch.ones(5, dtype=torch.float64), atol=1e-4, rtol=0)


def test_surface_brightness_agrees_with_galsim():
    for index in (0.5, 1.3, 4.0):
        profile = galsim.Sersic(index, half_light_radius=0.7, flux=2.5)
        radius, values = torch.linspace(0.05, 3, 7, dtype=torch.float64), (2.5, 0.7, index)
        expected = torch.tensor([profile.xValue(float(r), 0) for r in radius], dtype=torch.float64)
        result = sersic_surface_brightness(radius**2, *(torch.tensor(v, dtype=torch.float64) for v in values))
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


def test_flux_is_conserved():
    rows = [(1.0, 0.15, index, 0.6, 0.3, 63.2, 63.9) for index in (0.5, 1.0, 2.0)]
    torch.testing.assert_close(draw(*rows).sum((-2, -1)), torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=0)
    everything = draw((1.0, 1.0, 4.0, 0.7, 0.3, 512.0, 512.0), size=1024).sum()
    stamp = draw((1.0, 1.0, 4.0, 0.7, 0.3, 63.5, 63.5)).sum()
    assert 0.97 < everything < 1.0
    assert stamp < everything - 0.1


@pytest.mark.parametrize("index", [0.5, 1.0, 4.0, 6.0])
def test_quarter_turns_and_transposition(index):
    psf = torch.from_numpy(galsim.Gaussian(fwhm=0.18).drawImage(nx=33, ny=33, scale=SCALE).array).double()
    x, y, angle = 40.3, 71.6, 0.4
    image, turned, swapped = draw(
        (1.0, 0.9, index, 0.3, angle, x, y),
        (1.0, 0.9, index, 0.3, angle + np.pi / 2, 127 - y, x),
        (1.0, 0.9, index, 0.3, np.pi / 2 - angle, y, x),
        psf=psf,
    )
    torch.testing.assert_close(turned, torch.rot90(image, 1, (1, 0)), atol=1e-8, rtol=0)
    torch.testing.assert_close(swapped, image.T, atol=1e-8, rtol=0)


def test_shift_by_whole_pixels():
    first, second = draw((1.0, 0.2, 1.5, 0.5, 1.0, 60.3, 61.2), (1.0, 0.2, 1.5, 0.5, 1.0, 67.3, 58.2))
    torch.testing.assert_close(second[:-3, 7:], first[3:, :-7], atol=2e-6, rtol=0)


def random_components(scenes=3, sources=2, count=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    low = torch.tensor([0.5, 0.05, 0.5, 0.2, 0.0, 20.0, 20.0], dtype=dtype)
    high = torch.tensor([2.0, 1.0, 6.0, 1.0, 3.0, 107.0, 107.0], dtype=dtype)
    values = low + (high - low) * torch.rand(scenes, sources, count, 7, generator=generator, dtype=dtype)
    present = torch.rand(scenes, sources, count, generator=generator) < 0.6
    return Components(*values.unbind(-1), present)


def test_components_add_and_absent_ones_contribute_nothing():
    parts = random_components()
    whole = render(parts, PSF, pixel_scale=SCALE)
    expected = torch.zeros_like(whole)
    for scene, source, component in parts.present.nonzero().tolist():
        fields = ("flux", "half_light_radius", "sersic_index", "axis_ratio", "angle", "x", "y")
        row = [float(getattr(parts, name)[scene, source, component]) for name in fields]
        expected[scene, source] += draw(row)[0]
    torch.testing.assert_close(whole, expected, atol=3e-6, rtol=0)
    assert (whole[~parts.present.any(-1)] == 0).all()


def test_absent_components_may_hold_anything():
    parts = random_components()
    filled = {
        name: torch.where(parts.present, getattr(parts, name), torch.nan) for name in ("flux", "sersic_index", "x")
    }
    spoiled = Components(**{**vars(parts), **filled})
    torch.testing.assert_close(
        render(spoiled, PSF, pixel_scale=SCALE), render(parts, PSF, pixel_scale=SCALE), atol=0, rtol=0
    )


@pytest.mark.parametrize("scenes", [0, 1, 7, 20])
def test_shape_and_dtype_and_independence_of_the_batch(scenes):
    parts = random_components(scenes, dtype=torch.float32)
    images = render(parts, CAMERA.psf[0], pixel_scale=SCALE)
    assert images.shape == (scenes, 2, 128, 128)
    assert images.dtype == torch.float32
    if scenes:
        last = render(parts.select(slice(-1, None)), CAMERA.psf[0], pixel_scale=SCALE)
        torch.testing.assert_close(last[0], images[-1], atol=2e-6, rtol=0)


def test_each_scene_can_have_its_own_psf():
    parts = random_components(3)
    psfs = widen_psf(PSF, torch.tensor([0.95, 1.0, 1.05]))
    images = render(parts, psfs, pixel_scale=SCALE)
    for scene, psf in enumerate(psfs):
        alone = render(parts.select(slice(scene, scene + 1)), psf, pixel_scale=SCALE)[0]
        torch.testing.assert_close(images[scene], alone, atol=1e-12, rtol=0)


def test_fields_agree_in_shape():
    with pytest.raises(ValueError, match=r"angle must have the shape \(..., component\) of flux, got \(1,\)"):
        Components(**{**vars(components((1.0, 0.3, 1.0, 0.5, 0.0, 60.0, 60.0))), "angle": torch.ones(1)})


def test_no_component_at_all():
    parts = random_components()
    empty = Components(**{**vars(parts), "present": torch.zeros_like(parts.present)})
    assert (render(empty, PSF, pixel_scale=SCALE) == 0).all()


def test_single_precision():
    row = (1.0, 0.8, 4.0, 0.3, 0.3, 110.2, 30.1)
    double, single = draw(row)[0], draw(row, dtype=torch.float32)[0]
    assert (single - double).abs().max() < 1e-5 * double.max()
    assert (single.sum() - double.sum()).abs() < 1e-5


@pytest.mark.gpu
def test_agrees_on_a_device():
    parts = random_components(9, dtype=torch.float32)
    expected = render(parts, CAMERA.psf[0], pixel_scale=SCALE)
    moved = Components(**{name: value.to("cuda") for name, value in vars(parts).items()})
    images = render(moved, CAMERA.psf[0].to("cuda"), pixel_scale=SCALE)
    torch.testing.assert_close(images.cpu(), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_works_after_a_first_call_in_inference_mode():
    """Tables are made at the first call, in a process of its own here."""
    program = """
import torch
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.profiles import Components, render

psf, present = Camera.candels_f160w().psf[0], torch.ones(1, 1, dtype=torch.bool)
values = torch.tensor([[1.0, 0.3, 2.0, 0.5, 1.0, 60.0, 60.0]], requires_grad=True)
with torch.inference_mode():
    render(Components(*values.detach()[:, None].unbind(-1), present), psf, pixel_scale=0.06)
render(Components(*values[:, None].unbind(-1), present), psf, pixel_scale=0.06).square().sum().backward()
assert values.grad.isfinite().all()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_gradients():
    psf = torch.from_numpy(galsim.Gaussian(fwhm=0.15).drawImage(nx=3, ny=3, scale=SCALE).array).double()
    present = torch.tensor([True, True, False])
    rows = [
        [1.0, 0.1, 1.1, 0.5, 0.3, 4.2, 5.1],
        [0.7, 0.3, 3.7, 0.3, 1.3, 3.1, 6.3],
        [0.0, 0.2, 2.0, 0.5, 0.0, 4.0, 4.0],
    ]
    values = torch.tensor(rows, dtype=torch.float64, requires_grad=True)

    def image(values, psf):
        parts = Components(*values.unbind(-1), present)
        return render(parts, psf, pixel_scale=SCALE, size=6)

    assert torch.autograd.gradcheck(image, (values, (psf / psf.sum()).requires_grad_()), atol=1e-6)
    image(values, psf).square().sum().backward()
    assert (values.grad[:2] != 0).all()
    assert (values.grad[2] == 0).all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sersic_index", 0.4, "sersic_index must be 0.5 to 6, got 0.4"),
        ("sersic_index", 6.5, "sersic_index must be 0.5 to 6, got 6.5"),
        ("sersic_index", float("nan"), "sersic_index must be 0.5 to 6, got nan"),
        ("half_light_radius", 0.0, "half_light_radius must be positive, got 0"),
        ("half_light_radius", -0.3, "half_light_radius must be positive, got -0.3"),
        ("axis_ratio", 0.0, r"axis_ratio must be in \(0, 1\], got 0"),
        ("axis_ratio", 1.5, r"axis_ratio must be in \(0, 1\], got 1.5"),
        ("x", -40.0, "x must be within 32 pixels of the stamp, got -40"),
        ("y", 160.0, "y must be within 32 pixels of the stamp, got 160"),
    ],
)
def test_refuses_impossible_parameters(name, value, message):
    parts = components((1.0, 0.3, 1.0, 0.5, 0.0, 60.0, 60.0))
    wrong = Components(**{**vars(parts), name: torch.full_like(parts.flux, value)})
    with pytest.raises(ValueError, match=message):
        render(wrong, PSF, pixel_scale=SCALE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 4), r"psf must be square with an odd number of pixels on a side, got shape \(4, 4\)"),
        ((3, 5), r"psf must be square with an odd number of pixels on a side, got shape \(3, 5\)"),
        ((1, 1, 3, 3), r"psf must be square with an odd number of pixels on a side, got shape \(1, 1, 3, 3\)"),
        ((7, 3, 3), r"psf must be one for all or one for each of \(1,\), got 7"),
        ((17, 17), r"psf must be no larger than the stamp of 16 pixels, got shape \(17, 17\)"),
    ],
)
def test_refuses_wrong_psf(shape, message):
    with pytest.raises(ValueError, match=message):
        draw((1.0, 0.3, 1.0, 0.5, 0.0, 8.0, 8.0), psf=torch.ones(shape), size=16)


def test_refuses_wrong_pixel_scale():
    with pytest.raises(ValueError, match="pixel_scale must be positive, got -1"):
        render(components((1.0, 0.3, 1.0, 0.5, 0.0, 8.0, 8.0)), PSF, pixel_scale=-1)


def test_exponential_disk_has_its_closed_form():
    """Index 1 lies between nodes of the table: the transform is (1 + k^2 h^2)^(-3/2) for a scale length h."""
    radius, scale = 0.5, 0.5 / 1.6783469900166605
    k = 2 * np.pi * np.hypot(*np.meshgrid(np.fft.fftfreq(1024), np.fft.fftfreq(1024))) / SCALE
    transform = (1 + (k * scale) ** 2) ** -1.5
    exact = np.fft.fftshift(np.fft.ifft2(transform).real)[448:577, 448:577]
    image = draw((1.0, radius, 1.0, 1.0, 0.0, 64.0, 64.0), psf=torch.ones(1, 1), size=129)[0]
    np.testing.assert_allclose(image, exact, atol=2e-6)


@pytest.mark.parametrize("growth", [1.0, 0.95, 1.05])
def test_a_widened_psf_is_that_of_galsim(growth):
    """The pixels within 20 of the middle; beyond, GalSim's interpolation meets the edge of the array."""
    kernel = galsim.InterpolatedImage(galsim.Image(PSF.numpy(), scale=1.0), x_interpolant=galsim.Lanczos(31))
    drawn = kernel.dilate(growth).drawImage(nx=65, ny=65, scale=1.0, method="no_pixel").array
    made = widen_psf(PSF, torch.tensor([growth]))[0]
    assert float(made.sum()) == pytest.approx(float(PSF.sum()), rel=1e-9)
    inner = slice(12, -12)
    assert np.abs(made.numpy() - drawn * (float(PSF.sum()) / drawn.sum()))[inner, inner].max() < 1e-3 * float(PSF.max())


def test_a_widened_psf_keeps_itself_and_grows():
    growth = torch.tensor([1.0, 0.95, 1.05], dtype=torch.float64)
    same, narrow, wide = widen_psf(PSF, growth)
    torch.testing.assert_close(same, PSF, atol=1e-9, rtol=0)
    assert float(narrow.max()) / float(PSF.max()) == pytest.approx(0.95**-2, rel=0.01)
    assert float(wide.max()) / float(PSF.max()) == pytest.approx(1.05**-2, rel=0.01)
