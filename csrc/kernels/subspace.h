// The Newton step in the span of m displacements: see ops.solve_subspace and small.py. One system.
//
// Displacements are scaled to unit length; the eigenvectors of their metric whiten the span, those
// of the projected Hessian turn it, both by Jacobi rotations. Rows of `basis` are then unit
// displacements along which the model separates. Touches about 12 m^3 entries in cache.
#pragma once

#include <algorithm>

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
AADL_INLINE void multiply(const double* left, const double* right, int64_t m, double* out) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t c = 0; c < m; ++c) out[i * m + c] = 0;
    for (int64_t k = 0; k < m; ++k) {
      const double weight = left[i * m + k];
#pragma omp simd
      for (int64_t c = 0; c < m; ++c) out[i * m + c] += weight * right[k * m + c];
    }
  }
}

// Rows of `whiten` become eigenvectors of the scaled metric over the roots of their eigenvalues,
// zero for those at or below ridge * largest; returns how many are left.
AADL_INLINE int64_t whiten_span(const double* metric, const double* inverse, int64_t m,
                                double ridge, double* a, double* whiten) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t c = 0; c < m; ++c) a[i * m + c] = metric[i * m + c] * inverse[i] * inverse[c];
  }
  diagonalize(a, whiten, m, m * kUnit);
  double most = 0;
  for (int64_t i = 0; i < m; ++i) most = std::fmax(most, a[i * m + i]);
  int64_t rank = 0;
  for (int64_t i = 0; i < m; ++i) {
    const double value = a[i * m + i];
    const bool kept = value > ridge * most;
    rank += kept;
    for (int64_t c = 0; c < m; ++c) whiten[i * m + c] *= kept ? 1 / std::sqrt(value) : 0;
  }
  return rank;
}

// metric, curvature [m, m], right_side [m], noise [m, samples]; out: coefficients [m], and the
// eigenvalues of the projected Hessian [m] in ascending order.
AADL_INLINE NewtonStep newton_step(const double* metric, const double* curvature,
                                   const double* right_side, const double* noise, int64_t m,
                                   int64_t samples, const NewtonSettings& with, double* work,
                                   double* coefficients, double* eigenvalues) {
  double check = 0;
  for (int64_t i = 0; i < m * m; ++i) check += 0 * metric[i] + 0 * curvature[i];
  for (int64_t i = 0; i < m; ++i) check += 0 * right_side[i];
  for (int64_t i = 0; i < m * samples; ++i) check += 0 * noise[i];
  if (check != 0 || !(with.radius >= 0)) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    std::fill_n(coefficients, m, nan);
    std::fill_n(eigenvalues, m, 0.0);
    return {nan, nan, nan, 0};
  }
  double *const inverse = work, *const slopes = inverse + m, *const steps = slopes + m;
  double *const a = steps + m, *const whiten = a + m * m, *const hessian = whiten + m * m;
  double* const basis = hessian + m * m;
  for (int64_t i = 0; i < m; ++i) {
    const double length = std::sqrt(std::fmax(0, metric[i * m + i]));
    inverse[i] = length > 1e-150 ? 1 / length : 0;
  }
  const int64_t rank = whiten_span(metric, inverse, m, with.ridge, a, whiten);

  // hessian = whiten H whiten^T, brought to entries of at most one
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t c = 0; c < m; ++c) {
      const double both = curvature[i * m + c] + curvature[c * m + i];
      a[i * m + c] = 0.5 * both * inverse[i] * inverse[c];
    }
  }
  multiply(whiten, a, m, basis);  // [m, m] whiten H
  double largest = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t c = i; c < m; ++c) {
      double dot = 0;
      for (int64_t k = 0; k < m; ++k) dot += basis[i * m + k] * whiten[c * m + k];
      hessian[i * m + c] = hessian[c * m + i] = dot;
      largest = std::fmax(largest, std::fabs(dot));
    }
  }
  for (int64_t i = 0; i < m * m && largest > 0; ++i) hessian[i] /= largest;
  // Indefinite: small entries are differences of large ones, with their errors.
  diagonalize(hessian, a, m, m * kUnit);  // rows of a: eigenvectors
  multiply(a, whiten, m, basis);
  double stiffest = 0;
  for (int64_t i = 0; i < m; ++i) {
    eigenvalues[i] = hessian[i * m + i] * largest;
    stiffest = std::fmax(stiffest, std::fabs(eigenvalues[i]));
    for (int64_t c = 0; c < m; ++c) basis[i * m + c] *= inverse[c];
  }

  double length = 0;
  for (int64_t i = 0; i < m; ++i) {
    double c = 0, variance = 0;
    for (int64_t k = 0; k < m; ++k) c += basis[i * m + k] * right_side[k];
    for (int64_t j = 0; j < samples; ++j) {
      double z = 0;
      for (int64_t k = 0; k < m; ++k) z += basis[i * m + k] * noise[k * samples + j];
      variance += z * z / samples;
    }
    const double share = c * c > 0 ? std::fmax(0, 1 - with.shrinkage * variance / (c * c)) : 0;
    const double divisor = std::fmax(std::fabs(eigenvalues[i]), with.floor * stiffest);
    slopes[i] = c;
    steps[i] = divisor > 0 ? share * c / divisor : 0;
    length += steps[i] * steps[i];
  }
  length = std::sqrt(length);
  const double fit = length > with.radius ? with.radius / length : 1;
  double slope = 0, left = 0, before = 0;
  std::fill_n(coefficients, m, 0.0);
  for (int64_t i = 0; i < m; ++i) {
    const double step = fit * steps[i], rest = slopes[i] - eigenvalues[i] * step;
    slope -= step * slopes[i];
    left += rest * rest;
    before += slopes[i] * slopes[i];
    for (int64_t c = 0; c < m; ++c) coefficients[c] += step * basis[i * m + c];
  }
  std::sort(eigenvalues, eigenvalues + m);
  return {slope, fit * length, std::sqrt(left) / std::fmax(std::sqrt(before), 1e-150), rank};
}

}  // namespace aadl
