"""Proton spin systems of the metabolites of the human brain: published chemical shifts and couplings.

Shifts are in ppm relative to DSS at 0 ppm, 37 degrees C, pH 7; couplings in Hz. A molecule is split into moieties that
do not couple with each other. What counts as signal are the protons bound to carbon. Protons of NH groups exchange
with (suppressed) water; where their coupling to a carbon-bound proton is resolved they act as *partners*, as 31P and
14N do: they split the lines but are not seen themselves. Partners resonate far from the observed protons, so their
coupling is exactly secular for other nuclei and nearly so (6 Hz against 400 Hz at 3 T) for amide protons.
Protons of OH, amine and guanidinium groups exchange fast and are left out altogether.

Sources (the `source` of each molecule names which ones): GYM2000 = Govindaraju, Young, Maudsley, NMR Biomed 2000;
13:129-153, doi:10.1002/1099-1492(200005)13:3<129::AID-NBM619>3.0.CO;2-V; GYM2015 = its corrigendum, Govind, Young,
Maudsley, NMR Biomed 2015;28:923-924, doi:10.1002/nbm.3336.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mrsi_gadgets.errors import DataError

GYM2000 = "Govindaraju et al. 2000, doi:10.1002/1099-1492(200005)13:3<129::AID-NBM619>3.0.CO;2-V"
GYM2015 = "Govind et al. 2015 (corrigendum), doi:10.1002/nbm.3336"


@dataclass(frozen=True)
class Partner:
    """A spin that couples with the observed protons but is not observed (31P, 14N, amide NH)."""

    name: str
    spin: float
    """Spin quantum number: 0.5 for 31P and 1H, 1 for 14N."""
    couplings_hz: Mapping[int, float]
    """Group index -> scalar coupling [Hz]."""


@dataclass(frozen=True)
class SpinSystem:
    """One moiety: groups of magnetically equivalent nuclei and the couplings between the groups."""

    shifts_ppm: tuple[float, ...]
    """Chemical shift of each group [ppm]."""
    nuclei: tuple[int, ...]
    """Number of magnetically equivalent nuclei in each group (protons; 31P; deuterons, which do not couple)."""
    couplings_hz: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """(group, group) -> scalar coupling [Hz]. Couplings inside a group do not show and are not listed."""
    partners: tuple[Partner, ...] = ()
    fraction: float = 1.0
    """Share of the molecules in this form (anomers)."""
    observed: tuple[int, ...] | None = None
    """Groups whose lines are wanted; None: all. The others evolve and couple all the same (one phosphate of ATP)."""

    def __post_init__(self) -> None:
        n = len(self.shifts_ppm)
        if len(self.nuclei) != n or any(p < 1 for p in self.nuclei):
            raise DataError(f"spin system with {n} shifts needs {n} positive numbers of nuclei, got {self.nuclei}")
        for a, b in self.couplings_hz:
            if not (0 <= a < n and 0 <= b < n and a != b):
                raise DataError(f"coupling ({a}, {b}) names a group that a system of {n} groups does not have")
        if self.observed is not None and (not self.observed or any(not 0 <= group < n for group in self.observed)):
            raise DataError(f"observed groups {self.observed} of a system of {n} groups must be some of 0 to {n - 1}")
        for partner in self.partners:
            if any(not 0 <= group < n for group in partner.couplings_hz):
                raise DataError(f"partner {partner.name} couples with a group that a system of {n} groups lacks")

    @property
    def n_nuclei(self) -> float:
        """Observed nuclei, weighted with `fraction`."""
        observed = self.nuclei if self.observed is None else [self.nuclei[group] for group in self.observed]
        return self.fraction * sum(observed)


@dataclass(frozen=True)
class Molecule:
    """A metabolite: its moieties and where their numbers were published."""

    name: str
    full_name: str
    systems: tuple[SpinSystem, ...]
    source: str

    @property
    def n_nuclei(self) -> float:
        """Observed nuclei: the signal of 1 mM at t = 0."""
        return sum(system.n_nuclei for system in self.systems)


def singlet(ppm: float, nuclei: int, partners: tuple[Partner, ...] = ()) -> SpinSystem:
    """Return a group of equivalent nuclei at `ppm` that couple with no other observed nucleus."""
    return SpinSystem((ppm,), (nuclei,), partners=partners)


def _single(shifts: tuple[float, ...], couplings: Mapping[tuple[int, int], float], **more: object) -> SpinSystem:
    """Return a system in which every group is one proton."""
    return SpinSystem(shifts, (1,) * len(shifts), couplings, **more)  # type: ignore[arg-type]


def _nh(group: int, coupling_hz: float) -> Partner:
    return Partner("NH", 0.5, {group: coupling_hz})


def _phosphorus(*couplings_hz: float, first: int = 0) -> Partner:
    return Partner("31P", 0.5, {first + i: j for i, j in enumerate(couplings_hz)})


def _nitrogen(*couplings_hz: float, first: int = 0) -> Partner:
    return Partner("14N", 1.0, {first + i: j for i, j in enumerate(couplings_hz)})


_ALL = (
    Molecule(
        "NAA",
        "N-acetylaspartate",
        (
            singlet(2.008, 3),
            _single(
                (4.3817, 2.6727, 2.4863),
                {(0, 1): 3.861, (0, 2): 9.821, (1, 2): -15.592},
                partners=(_nh(0, 6.400),),
            ),
        ),
        GYM2000,
    ),
    Molecule(
        "NAAG",
        "N-acetylaspartylglutamate",
        (
            singlet(2.042, 3),
            _single(
                (4.607, 2.721, 2.519),
                {(0, 1): 4.412, (0, 2): 9.515, (1, 2): -15.910},
                partners=(_nh(0, 7.32),),
            ),
            _single(
                (4.128, 2.049, 1.881, 2.180, 2.190),
                {
                    (0, 1): 4.61,
                    (0, 2): 8.42,
                    (1, 2): -14.28,
                    (1, 3): 10.56,
                    (1, 4): 6.09,
                    (2, 3): 4.90,
                    (2, 4): 11.11,
                    (3, 4): -15.28,
                },
                partners=(_nh(0, 7.46),),
            ),
        ),
        f"shifts and aspartyl couplings {GYM2000}; glutamyl couplings Krawczyk and Gradowska, "
        "J Pharm Biomed Anal 2003;31:455-463",
    ),
    Molecule("Cr", "creatine", (singlet(3.027, 3), singlet(3.913, 2)), GYM2000),
    Molecule("PCr", "phosphocreatine", (singlet(3.029, 3), singlet(3.930, 2)), GYM2000),
    Molecule(
        "GPC",
        "glycerophosphocholine",
        (
            singlet(3.212, 9, (_nitrogen(0.57),)),
            _single(
                (3.605, 3.672, 3.903, 3.871, 3.946),
                {
                    (0, 1): -14.78,
                    (0, 2): 5.77,
                    (1, 2): 4.53,
                    (2, 3): 5.77,
                    (2, 4): 4.53,
                    (3, 4): -14.78,
                },
                partners=(_phosphorus(6.03, 6.03, first=3),),
            ),
            _single(
                (4.312, 4.312, 3.659, 3.659),
                {(0, 1): -9.32, (0, 2): 3.10, (0, 3): 5.90, (1, 2): 5.90, (1, 3): 3.10, (2, 3): -9.32},
                partners=(_phosphorus(6.03, 6.03), _nitrogen(2.67, 2.67)),
            ),
        ),
        f"{GYM2000}; {GYM2015}",
    ),
    Molecule(
        "PCh",
        "phosphocholine",
        (
            singlet(3.208, 9),
            _single(
                (4.2805, 4.2805, 3.641, 3.641),
                {(0, 1): -14.89, (0, 2): 2.284, (0, 3): 7.231, (1, 2): 7.326, (1, 3): 2.235, (2, 3): -14.19},
                partners=(_phosphorus(6.298, 6.249), _nitrogen(2.680, 2.772)),
            ),
        ),
        f"{GYM2000}; {GYM2015}",
    ),
    Molecule(
        "PE",
        "phosphoethanolamine",
        (
            _single(
                (3.9765, 3.9765, 3.216, 3.216),
                {(0, 1): -14.56, (0, 2): 3.182, (0, 3): 6.716, (1, 2): 7.204, (1, 3): 2.980, (2, 3): -14.71},
                partners=(_phosphorus(7.288, 7.088), _nitrogen(0.464, 0.588)),
            ),
        ),
        GYM2015,
    ),
    Molecule(
        "Ins",
        "myo-inositol",
        (
            _single(
                (3.5217, 4.0538, 3.5217, 3.6144, 3.2690, 3.6144),
                {(0, 1): 2.889, (0, 5): 9.998, (1, 2): 3.006, (2, 3): 9.997, (3, 4): 9.485, (4, 5): 9.482},
            ),
        ),
        GYM2000,
    ),
    Molecule("sIns", "scyllo-inositol", (singlet(3.340, 6),), GYM2000),
    Molecule(
        "Glu",
        "glutamate",
        (
            _single(
                (3.7433, 2.0375, 2.1200, 2.3378, 2.3520),
                {
                    (0, 1): 7.331,
                    (0, 2): 4.651,
                    (1, 2): -14.849,
                    (1, 3): 6.413,
                    (1, 4): 8.406,
                    (2, 3): 8.478,
                    (2, 4): 6.875,
                    (3, 4): -15.915,
                },
            ),
        ),
        GYM2000,
    ),
    Molecule(
        "Gln",
        "glutamine",
        (
            _single(
                (3.7530, 2.1290, 2.1090, 2.4320, 2.4540),
                {
                    (0, 1): 5.847,
                    (0, 2): 6.500,
                    (1, 2): -14.504,
                    (1, 3): 9.165,
                    (1, 4): 6.347,
                    (2, 3): 6.324,
                    (2, 4): 9.209,
                    (3, 4): -15.371,
                },
            ),
        ),
        GYM2000,
    ),
    Molecule(
        "GABA",
        "gamma-aminobutyric acid",
        (
            _single(
                (2.2840, 2.2840, 1.8880, 1.8880, 3.0130, 3.0130),
                {
                    (0, 1): -15.938,
                    (0, 2): 7.678,
                    (0, 3): 6.980,
                    (1, 2): 6.980,
                    (1, 3): 7.678,
                    (2, 3): -15.000,
                    (2, 4): 8.510,
                    (2, 5): 6.503,
                    (3, 4): 6.503,
                    (3, 5): 8.510,
                    (4, 5): -14.062,
                },
            ),
        ),
        "Near et al., Magn Reson Med 2013;70:1183-1191",
    ),
    Molecule(
        "Asp",
        "aspartate",
        (_single((3.8914, 2.8011, 2.6533), {(0, 1): 3.647, (0, 2): 9.107, (1, 2): -17.426}),),
        GYM2000,
    ),
    Molecule(
        "GSH",
        "glutathione",
        (
            singlet(3.769, 2),
            _single((4.5608, 2.9264, 2.9747), {(0, 1): 7.09, (0, 2): 4.71, (1, 2): -14.06}),
            _single(
                (3.769, 2.159, 2.146, 2.510, 2.560),
                {
                    (0, 1): 6.34,
                    (0, 2): 6.36,
                    (1, 2): -15.48,
                    (1, 3): 6.70,
                    (1, 4): 7.60,
                    (2, 3): 7.60,
                    (2, 4): 6.70,
                    (3, 4): -15.92,
                },
            ),
        ),
        GYM2000,
    ),
    Molecule("Lac", "lactate", (SpinSystem((4.0974, 1.3142), (1, 3), {(0, 1): 6.933}),), GYM2000),
    Molecule(
        "Tau",
        "taurine",
        (
            _single(
                (3.4206, 3.4206, 3.2459, 3.2459),
                {(0, 1): -12.438, (0, 2): 6.742, (0, 3): 6.464, (1, 2): 6.403, (1, 3): 6.792, (2, 3): -12.930},
            ),
        ),
        GYM2015,
    ),
    Molecule(
        "Glc",
        "glucose (36 % alpha, 64 % beta)",
        (
            _single(
                (5.216, 3.519, 3.698, 3.395, 3.822, 3.826, 3.749),
                {(0, 1): 3.8, (1, 2): 9.6, (2, 3): 9.4, (3, 4): 9.9, (4, 5): 1.5, (4, 6): 6.0, (5, 6): -12.1},
                fraction=0.36,
            ),
            _single(
                (4.630, 3.230, 3.473, 3.387, 3.450, 3.882, 3.707),
                {(0, 1): 8.0, (1, 2): 9.1, (2, 3): 9.4, (3, 4): 8.9, (4, 5): 1.6, (4, 6): 5.4, (5, 6): -12.3},
                fraction=0.64,
            ),
        ),
        GYM2000,
    ),
    Molecule("Ala", "alanine", (SpinSystem((3.7746, 1.4667), (1, 3), {(0, 1): 7.234}),), GYM2000),
    Molecule("Gly", "glycine", (singlet(3.548, 2),), GYM2000),
    Molecule(
        "Asc",
        "ascorbate",
        (
            _single(
                (4.4965, 4.0072, 3.7469, 3.7194),
                {(0, 1): 2.055, (1, 2): 5.780, (1, 3): 7.373, (2, 3): -11.585},
            ),
        ),
        "Terpstra et al., Magn Reson Med 2006;56:1192-1199",
    ),
    Molecule(
        "Ser",
        "serine",
        (_single((3.8347, 3.9379, 3.9764), {(0, 1): 5.979, (0, 2): 3.561, (1, 2): -12.254}),),
        GYM2015,
    ),
    Molecule(
        "2HG",
        "2-hydroxyglutarate",
        (
            _single(
                (4.022, 1.825, 1.977, 2.221, 2.272),
                {
                    (0, 1): 7.0,
                    (0, 2): 4.1,
                    (1, 2): -14.0,
                    (1, 3): 5.3,
                    (1, 4): 10.6,
                    (2, 3): 10.4,
                    (2, 4): 6.0,
                    (3, 4): -15.0,
                },
            ),
        ),
        "Choi et al. 2012, doi:10.1038/nm.2682",
    ),
)

MOLECULES: Mapping[str, Molecule] = {molecule.name: molecule for molecule in _ALL}
"""Name -> molecule, in the order of the reports."""


def molecule(name: str) -> Molecule:
    """Return the molecule called `name`.

    Raises
    ------
    DataError
        There is no such molecule.
    """
    if name not in MOLECULES:
        raise DataError(f"molecule '{name}' is not known; known are {', '.join(MOLECULES)}")
    return MOLECULES[name]
