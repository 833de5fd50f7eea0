// The direction of L-BFGS from products of its pairs: see ops.solve_quasi_newton. One system.
//
// Pairs that are used are listed in the order of time; R is the upper triangle of their S Y^T.
// Both triangular systems are solved a column at a time, so that a team shares its entries. Touches
// about 6 m^2 numbers.
#pragma once

#include "records.h"
#include "solve.h"

namespace aadl {

constexpr double kCurved = 1e-8;  // least cosine between a step and its change of the gradient
constexpr double kShortest = 1e-150;  // least product of the two

// Numbers of the workspace of quasi_newton_direction: p, c, a right side, products, and the list.
AADL_INLINE int64_t direction_workspace(int64_t m) { return 5 * m; }

// The pairs with positive curvature, oldest first, as row numbers; returns how many.
AADL_INLINE int64_t list_pairs(const QuasiNewton& args, double* list) {
  const int64_t m = args.m;
  int64_t count = 0;
  for (int64_t i = 0; i < m; ++i) {
    const int64_t row = (args.newest + 1 + i) % m, own = row * m + row;
    const double squares = args.metric[own] * args.gradient_metric[own];
    const double lengths = squares > 0 ? std::sqrt(squares) : squares < 0 ? 0 : squares;  // or NaN
    const double floor = kCurved * lengths;
    const double least = floor < kShortest ? kShortest : floor;
    if (args.curvature[own] > least) list[count++] = static_cast<double>(row);
  }
  return count;
}

// The length of the newest step that is not zero.
AADL_INLINE double last_step(const QuasiNewton& args) {
  const int64_t m = args.m;
  double square = args.metric[(args.newest + 1) % m * (m + 1)];
  for (int64_t i = 0; i < m; ++i) {
    const double own = args.metric[(args.newest + 1 + i) % m * (m + 1)];
    if (own > 0) square = own;
  }
  return std::sqrt(square);
}

template <class Team>
AADL_INLINE void quasi_newton_direction(const Team& team, const QuasiNewton& args, double* work) {
  const int64_t m = args.m;
  double* const p = work;
  double* const c = p + m;
  double* const right = c + m;
  double* const products = right + m;
  double* const list = products + m;
  for (int64_t i = team.rank; i < m; i += team.size) args.steps[i] = args.changes[i] = 0;
  if (team.rank == 0) products[0] = static_cast<double>(list_pairs(args, list));
  team.sync();
  const int64_t count = static_cast<int64_t>(products[0]);
  team.sync();
  const auto row = [=](int64_t i) { return static_cast<int64_t>(list[i]); };

  const double gg = *args.squared_norm, length = last_step(args);
  const double longer = args.curvature[args.newest * (m + 1)] < 0 ? args.growth : 1;
  double scaled = gg > 0 ? longer * length * inverse_root(gg) : 0;
  if (count > 0) {
    const int64_t own = row(count - 1) * (m + 1);
    scaled = args.curvature[own] / args.gradient_metric[own];
  }

  for (int64_t i = team.rank; i < count; i += team.size) right[i] = args.slopes[row(i)];
  team.sync();
  for (int64_t j = count - 1; j >= 0; --j) {  // R p = S g
    const int64_t at = row(j);
    const double found = right[j] / args.curvature[at * m + at];
    team.sync();
    for (int64_t i = team.rank; i < j; i += team.size) {
      right[i] -= args.curvature[row(i) * m + at] * found;
    }
    if (team.rank == 0) p[j] = found;
    team.sync();
  }
  for (int64_t i = team.rank; i < count; i += team.size) {
    const int64_t at = row(i);
    double dot = 0;
    for (int64_t j = 0; j < count; ++j) dot += args.gradient_metric[at * m + row(j)] * p[j];
    right[i] = args.curvature[at * m + at] * p[i] + scaled * (dot - args.gradient_slopes[at]);
  }
  team.sync();
  for (int64_t j = 0; j < count; ++j) {  // R^T c = D p + gamma (Y Y^T p - Y g)
    const int64_t at = row(j);
    const double found = right[j] / args.curvature[at * m + at];
    team.sync();
    for (int64_t i = j + 1 + team.rank; i < count; i += team.size) {
      right[i] -= args.curvature[at * m + row(i)] * found;
    }
    if (team.rank == 0) c[j] = found;
    team.sync();
  }

  // |way|^2, a row of products each.
  for (int64_t i = team.rank; i < count; i += team.size) {
    const int64_t at = row(i);
    const double q = -scaled * p[i];
    double with_steps = 0, with_changes = 0, across = 0;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t other = at * m + row(j);
      with_steps += args.metric[other] * c[j];
      with_changes -= args.gradient_metric[other] * (scaled * p[j]);
      across -= args.curvature[other] * (scaled * p[j]);
    }
    products[i] = c[i] * (with_steps + 2 * across) + q * with_changes +
                  2 * scaled * (c[i] * args.slopes[at] + q * args.gradient_slopes[at]);
  }
  team.sync();
  double square = scaled * scaled * gg;
  for (int64_t i = 0; i < count; ++i) square += products[i];
  const double way = square > 0 ? std::sqrt(square) : square;
  const double most = args.growth * length, share = way > most ? most / way : 1;
  bool sound = finite(scaled * share);
  for (int64_t i = 0; i < count; ++i) {
    sound = sound && finite(c[i] * share) && finite(scaled * p[i] * share);
  }
  for (int64_t i = team.rank; sound && i < count; i += team.size) {
    args.steps[row(i)] = c[i] * share;
    args.changes[row(i)] = -scaled * p[i] * share;
  }
  if (team.rank == 0) *args.gradient = sound ? scaled * share : 0;
}

}  // namespace aadl
