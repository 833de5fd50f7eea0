// The CPU kernels, free of torch: see records.h for what they take and do. All sums are float64.
// The bits of a result do not depend on the number of threads; they do on the instruction set.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "../common/fixed_points.h"
#include "../common/records.h"
#include "../common/scalar.h"
#include "../common/verdicts.h"

namespace aadl::cpu {

// Threads to work on: run(count, body) calls body(i) for every i in [0, count), in any order, on
// any threads, and returns when all are done. torch's own in the extension, std::thread in the lab.
struct Threads {
  std::function<void(int64_t count, const std::function<void(int64_t)>& body)> run;
};

// None of them, if `when` is false.
void copy(const std::vector<Piece>& pieces, const bool* when, const Threads& threads);

// *out = sum of squares.
void squared_norm(const std::vector<Entries>& pieces, double* out, const Threads& threads);

// out[j] = sum of the entries at j, j + size, ..., with their signs and weights.
void sketch(const std::vector<Weighted>& pieces, int64_t size, double* out, const Threads& threads);

template <class T>
void differs(const Difference<T>& args, const Threads& threads);

template <class T, class S>
void push(const Push<T, S>& args, const Threads& threads);

template <class T, class S>
void extrapolate(const Extrapolate<T, S>& args, const Threads& threads);

template <class T>
void window_statistics(const Window<T>& args, const Threads& threads);

template <class T, class S>
void tsqr(const Tsqr<T, S>& args, const Threads& threads);

template <class T>
void add_sample(const Sample<T>& args, const std::vector<SamplePart>& parts, const Threads& threads);

template <class T, class S>
void push_block(const BlockMeans<T, S>& args, const Threads& threads);

void products(const Products& args, const Threads& threads);

void solve_secants(const Secants& args, const Threads& threads);

void fit_quadratic(const Quadratic& args, const Threads& threads);

void solve_subspace(const Subspace& args, const Threads& threads);

void solve_quasi_newton(const QuasiNewton& args, const Threads& threads);

void judge_fixed_points(const FixedPoints& args, const Threads& threads);

template <class Verdict>
void judge(const Verdict& verdict, const Threads&) {
  verdict();
}

}  // namespace aadl::cpu
