// The Newton step in the span of m displacements: see ops.solve_subspace and small.py. One system.
//
// Displacements are scaled to unit length; the eigenvectors of their metric whiten the span, those
// of the projected Hessian turn it, both by Jacobi rotations. Rows of `basis` are then unit
// displacements along which the model separates. Touches about 12 m^3 entries in cache.
#pragma once

#include "solve.h"

namespace aadl {

struct NewtonStep {
  double slope, length, reduction;
  int64_t rank;
};

struct NewtonSettings {
  double radius, ridge, floor, shrinkage;
};

// Numbers of the workspace of newton_step.
AADL_INLINE int64_t newton_workspace(int64_t m) { return 4 * m * m + 3 * m; }

// out [m, m] = rows of `left` times `right`, both row-major.
template <class Team>
AADL_INLINE void multiply(const Team& team, const double* left, const double* right, int64_t m,
                          double* out) {
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t c = 0; c < m; ++c) out[i * m + c] = 0;
    for (int64_t k = 0; k < m; ++k) {
      const double weight = left[i * m + k];
#pragma omp simd
      for (int64_t c = 0; c < m; ++c) out[i * m + c] += weight * right[k * m + c];
    }
  }
  team.sync();
}

// Of the rows whose metric this is; 0 for one that is zero.
template <class Team>
AADL_INLINE void inverse_lengths(const Team& team, const double* metric, int64_t m,
                                 double* inverse) {
  for (int64_t i = team.rank; i < m; i += team.size) {
    const double length = std::sqrt(std::fmax(0.0, metric[i * m + i]));
    inverse[i] = length > 1e-150 ? 1 / length : 0;
  }
  team.sync();
}

// Rows of `whiten` become eigenvectors of the scaled metric over the roots of their eigenvalues,
// zero for those at or below ridge * largest; returns how many are left.
template <class Team>
AADL_INLINE int64_t whiten_span(const Team& team, const double* metric, const double* inverse,
                                int64_t m, double ridge, double* a, double* whiten) {
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t c = 0; c < m; ++c) a[i * m + c] = metric[i * m + c] * inverse[i] * inverse[c];
  }
  team.sync();
  diagonalize(team, a, whiten, m, m * kUnit);
  double most = 0;
  for (int64_t i = 0; i < m; ++i) most = std::fmax(most, a[i * m + i]);
  int64_t rank = 0;
  for (int64_t i = 0; i < m; ++i) rank += a[i * m + i] > ridge * most;
  for (int64_t i = team.rank; i < m; i += team.size) {
    const double value = a[i * m + i];
    const double weight = value > ridge * most ? 1 / std::sqrt(value) : 0;
    for (int64_t c = 0; c < m; ++c) whiten[i * m + c] *= weight;
  }
  team.sync();
  return rank;
}

// hessian [m, m] = whiten H whiten^T, H the symmetric part of the scaled curvature.
template <class Team>
AADL_INLINE void project(const Team& team, const double* curvature, const double* inverse,
                         const double* whiten, int64_t m, double* scaled, double* half,
                         double* hessian) {
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t c = 0; c < m; ++c) {
      const double both = curvature[i * m + c] + curvature[c * m + i];
      scaled[i * m + c] = 0.5 * both * inverse[i] * inverse[c];
    }
  }
  team.sync();
  multiply(team, whiten, scaled, m, half);
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t c = i; c < m; ++c) {
      double dot = 0;
      for (int64_t k = 0; k < m; ++k) dot += half[i * m + k] * whiten[c * m + k];
      hessian[i * m + c] = hessian[c * m + i] = dot;
    }
  }
  team.sync();
}

// Brings the entries of `matrix` to at most one; returns what the largest was.
template <class Team>
AADL_INLINE double scale_to_one(const Team& team, double* matrix, int64_t size) {
  double largest = 0;
  for (int64_t i = 0; i < size; ++i) largest = std::fmax(largest, std::fabs(matrix[i]));
  team.sync();
  for (int64_t i = team.rank; i < size && largest > 0; i += team.size) matrix[i] /= largest;
  team.sync();
  return largest;
}

AADL_INLINE void sort(double* values, int64_t size) {
  for (int64_t i = 1; i < size; ++i) {
    const double value = values[i];
    int64_t place = i;
    for (; place > 0 && values[place - 1] > value; --place) values[place] = values[place - 1];
    values[place] = value;
  }
}

// metric, curvature [m, m], right_side [m], noise [m, samples]; out: coefficients [m], and the
// eigenvalues of the projected Hessian [m] in ascending order. The same is returned to every
// member of the team.
template <class Team>
AADL_INLINE NewtonStep newton_step(const Team& team, const double* metric, const double* curvature,
                                   const double* right_side, const double* noise, int64_t m,
                                   int64_t samples, const NewtonSettings& with, double* work,
                                   double* coefficients, double* eigenvalues) {
  double check = 0;
  const auto look_at = [&](const double* entries, int64_t size) {
    for (int64_t i = team.rank; i < size; i += team.size) check += 0 * entries[i];
  };
  look_at(metric, m * m), look_at(curvature, m * m);
  look_at(right_side, m), look_at(noise, m * samples);
  if (!team.all(check == 0 && with.radius >= 0)) {
    for (int64_t i = team.rank; i < m; i += team.size) coefficients[i] = kNan, eigenvalues[i] = 0;
    return {kNan, kNan, kNan, 0};
  }
  double *const inverse = work, *const slopes = inverse + m, *const steps = slopes + m;
  double *const a = steps + m, *const whiten = a + m * m, *const hessian = whiten + m * m;
  double* const basis = hessian + m * m;
  inverse_lengths(team, metric, m, inverse);
  const int64_t rank = whiten_span(team, metric, inverse, m, with.ridge, a, whiten);
  project(team, curvature, inverse, whiten, m, a, basis, hessian);
  const double largest = scale_to_one(team, hessian, m * m);
  // Indefinite: small entries are differences of large ones, with their errors.
  diagonalize(team, hessian, a, m, m * kUnit);  // rows of a: eigenvectors
  multiply(team, a, whiten, m, basis);
  double stiffest = 0;
  for (int64_t i = 0; i < m; ++i) {
    stiffest = std::fmax(stiffest, std::fabs(hessian[i * m + i] * largest));
  }

  for (int64_t i = team.rank; i < m; i += team.size) {
    double c = 0, variance = 0;
    for (int64_t k = 0; k < m; ++k) {
      basis[i * m + k] *= inverse[k];
      c += basis[i * m + k] * right_side[k];
    }
    for (int64_t j = 0; j < samples; ++j) {
      double z = 0;
      for (int64_t k = 0; k < m; ++k) z += basis[i * m + k] * noise[k * samples + j];
      variance += z * z / samples;
    }
    const double share = c * c > 0 ? std::fmax(0.0, 1 - with.shrinkage * variance / (c * c)) : 0;
    const double value = hessian[i * m + i] * largest;
    const double divisor = std::fmax(std::fabs(value), with.floor * stiffest);
    eigenvalues[i] = value;
    slopes[i] = c;
    steps[i] = divisor > 0 ? share * c / divisor : 0;
  }
  team.sync();
  double length = 0;
  for (int64_t i = 0; i < m; ++i) length += steps[i] * steps[i];
  length = std::sqrt(length);
  const double fit = length > with.radius ? with.radius / length : 1;
  double slope = 0, left = 0, before = 0;
  for (int64_t i = 0; i < m; ++i) {
    const double step = fit * steps[i], rest = slopes[i] - eigenvalues[i] * step;
    slope -= step * slopes[i];
    left += rest * rest;
    before += slopes[i] * slopes[i];
  }
  for (int64_t c = team.rank; c < m; c += team.size) {
    double sum = 0;
    for (int64_t i = 0; i < m; ++i) sum += fit * steps[i] * basis[i * m + c];
    coefficients[c] = sum;
  }
  team.sync();
  if (team.rank == 0) sort(eigenvalues, m);
  return {slope, fit * length, std::sqrt(left) / std::fmax(std::sqrt(before), 1e-150), rank};
}

}  // namespace aadl
