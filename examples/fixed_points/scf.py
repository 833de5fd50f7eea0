"""Self-consistent field of a water molecule: PySCF's Fock matrices, mixed here.

x is the Fock matrix, f(x) that of the density of its lowest orbitals. PySCF's own iteration (DIIS,
which extrapolates Fock matrices by commutators) is the other side. `pip install pyscf` first.

    python examples/fixed_points/scf.py
"""

from __future__ import annotations

import numpy as np
from picture import draw
from pyscf import gto, scf

from aadl_ext import AndersonMixing, fixed_point

ATOMS = "O 0 0 0; H 0 -0.757 0.587; H 0 0.757 0.587"


def main() -> None:
    """Energies and evaluations of plain steps, Anderson mixing and PySCF."""
    molecule = gto.M(atom=ATOMS, basis="cc-pvdz", verbose=0)
    field = scf.RHF(molecule)
    core, overlap = field.get_hcore(), field.get_ovlp()
    start = field.get_fock(dm=field.get_init_guess())
    curves: dict[str, list[float]] = {}

    def density(fock: np.ndarray) -> np.ndarray:
        energies, orbitals = field.eig(fock, overlap)
        return field.make_rdm1(orbitals, field.get_occ(energies, orbitals))

    for label, method in {
        "plain": AndersonMixing(history_depth=0),
        "Anderson, m = 8": AndersonMixing(history_depth=8),
        "type I, m = 8": AndersonMixing(history_depth=8, kind="I"),
    }.items():
        residuals: list[float] = []

        def iterate(fock: np.ndarray, residuals: list[float] = residuals) -> np.ndarray:
            new = field.get_fock(dm=density(fock))
            residuals.append(float(np.linalg.norm(new - fock)))
            return new

        options = {"tol": 0.0, "abs_tol": 1e-7, "batch_dims": 0}
        found = fixed_point(iterate, start, method=method, **options)
        energy = field.energy_tot(dm=density(found.solution), h1e=core)
        print(f"{label}: {energy:.9f} hartree, {found.steps} Fock matrices, {found.reason}")
        curves[label] = residuals
    cycles: list[int] = []
    field.callback = lambda state: cycles.append(state["cycle"])
    field.conv_tol, field.conv_tol_grad = 1e-13, 1e-7
    print(f"PySCF (DIIS): {field.kernel():.9f} hartree, {len(cycles) + 1} Fock matrices")
    print(draw("scf", "Hartree-Fock of water, cc-pVDZ", curves))


if __name__ == "__main__":
    main()
