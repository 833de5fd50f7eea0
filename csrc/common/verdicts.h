// What a step decides, on three small arrays: ops/verdicts.py tells what each entry means, and is the
// definition. Each verdict is a function object that one thread calls, on the CPU and on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "scalar.h"

namespace aadl {

// In the order of ops/verdicts.py.
struct Control {
  double norm, max_step, reduction, rejections, known, reference, trust_radius, damping, excess,
      expected, slope, slope_sum, share, noise_ratio, roughness, level_change,
      tries;
};
struct Flags {
  bool pending, paired, ready, accepted, declined, rejected, nonfinite, unsound, lost, restart,
      write, oscillates, steady, limited, on_line, beyond, spoiled, complete, exact, held,
      anew;
};
struct Counts {
  int64_t pairs, extrapolations, accepted, dropped, shortened, averaged, skipped_nonfinite,
      skipped_no_gradient, rejected_nonfinite, rejected_residual, rejected_limits,
      rejected_descent, rejected_loss, rejected_request, restarts_rejections,
      restarts_moved_outside;
};

// Where they are.
struct Verdicts {
  Control* control;
  Flags* flags;
  Counts* counts;
};

constexpr double kPatience = 2;  // rejections in a row that clear the history
constexpr double kLeastTrust = 0.25, kMostTrust = 1e6;
constexpr double kLeastDamping = 0.02, kGain = 0.3, kForgetting = 0.7;
constexpr double kRepeats = 1e-4 * 1e-4;  // of |g|^2; what differs less is the same gradient
constexpr double kSteep = 0.9, kTries = 6;

// The second number if they cannot be compared.
AADL_INLINE double larger(double one, double other) { return one > other ? one : other; }
AADL_INLINE double smaller(double one, double other) { return one < other ? one : other; }
AADL_INLINE double ratio(double one, double other) { return other == 0 ? 0 : one / other; }

// Whether a gradient is that of another step, by the squared norm of their difference.
AADL_INLINE bool repeats_within(double change, double squared_norm) {
  return finite(squared_norm) && change <= kRepeats * squared_norm;
}

// Whoever moved the parameters since the last step wants them there: nothing is pending.
AADL_INLINE void release(const Verdicts& to, const bool* moved, bool averages) {
  if (!moved || !*moved) return;
  Flags& f = *to.flags;
  to.counts->dropped += f.pending;
  to.counts->restarts_moved_outside += f.pending || (averages && !f.lost);
  to.control->known = 1;
  f.pending = false;
}

struct JudgeGradient {
  Verdicts to;
  const double* figures;  // squared norm, and perhaps products with both ends of the way
  const bool* moved;      // may be null
  double growth;
  bool averages, has_slope;

  AADL_INLINE void operator()() const {
    release(to, moved, averages);
    Flags& f = *to.flags;
    const double norm = std::sqrt(figures[0]);
    const bool uphill = has_slope && !(figures[1] <= figures[2]);
    f.nonfinite = f.pending && !finite(norm);
    f.rejected = f.pending && (norm > growth * to.control->reference || uphill);
    f.rejected = f.rejected || f.nonfinite;
  }
};

struct JudgeResidual {
  Verdicts to;
  const double* figures;
  const bool* moved;  // may be null
  bool compares, stores, averages;

  AADL_INLINE void operator()() const {
    release(to, moved, averages);
    Control& c = *to.control;
    Flags& f = *to.flags;
    Counts& n = *to.counts;
    const double norm = std::sqrt(figures[1]);
    const bool sound = finite(norm);
    const bool before = f.rejected && !f.nonfinite;  // by the gradient
    const bool larger = !(norm < c.norm);            // or NaN
    f.rejected = f.pending && ((larger && compares) || !sound);
    const bool accepted = f.pending && !f.rejected;
    f.lost = !(sound || f.rejected);
    c.rejections = accepted ? 0 : c.rejections + f.rejected;
    f.restart = c.rejections >= kPatience;
    if (f.restart) c.rejections = 0;
    n.pairs += sound && stores;
    n.accepted += accepted;
    n.rejected_nonfinite += f.rejected && !sound && !before;
    n.rejected_descent += f.rejected && !sound && before;
    n.rejected_residual += f.rejected && sound;
    n.skipped_nonfinite += f.lost;
    n.restarts_rejections += f.restart;
    if (f.accepted && sound) c.reduction = ratio(norm, c.norm);
    c.norm = norm;
    if (!f.rejected) c.max_step = figures[0];
    c.known = f.lost ? 0 : c.known + !f.rejected;
    f.paired = (f.paired || (sound && stores)) && !f.restart;
    f.ready = sound && !f.rejected && norm > 0;
    f.unsound = !sound;
    f.write = f.rejected;
    f.pending = f.accepted = false;
  }
};

struct Arm {
  static constexpr int kMost = 8;
  Verdicts to;
  const bool* possible;
  const bool* passes[kMost];
  int64_t causes[kMost];  // positions in Counts
  int tests;
  bool guarded, patient;

  AADL_INLINE void operator()() const {
    Control& c = *to.control;
    Flags& f = *to.flags;
    Counts& n = *to.counts;
    const bool ready = f.ready && *possible;
    f.accepted = ready;
    for (int i = 0; i < tests && f.accepted; ++i) {
      if (*passes[i]) continue;
      f.accepted = false;
      reinterpret_cast<int64_t*>(to.counts)[causes[i]] += 1;
    }
    n.extrapolations += ready;
    c.rejections += ready && !f.accepted;
    if (!guarded) {
      n.accepted += f.accepted;
      if (f.accepted) c.rejections = 0;
    }
    if (patient && c.rejections >= kPatience) {
      n.restarts_rejections += 1;
      f.restart = true;
      f.paired = false;
      c.rejections = 0;
    }
    f.pending = f.accepted && guarded;
    f.declined = !f.accepted;
    f.write = f.write || f.accepted;
  }
};

struct Average {
  Verdicts to;
  const void* max_std;  // float or, if `wide`, double
  bool wide;
  double threshold, length;

  AADL_INLINE void operator()() const {
    Flags& f = *to.flags;
    const double spread =
        wide ? *static_cast<const double*>(max_std) : *static_cast<const float*>(max_std);
    f.oscillates = spread > threshold * to.control->max_step && to.control->known >= length;
    f.steady = !f.oscillates;
    f.write = f.write || f.oscillates;
    to.counts->averaged += f.oscillates;
  }
};

struct JudgeSlope {
  Verdicts to;
  const double* figures;
  bool judges;

  AADL_INLINE void operator()() const {
    Control& c = *to.control;
    Flags& f = *to.flags;
    Counts& n = *to.counts;
    const double squared_norm = figures[0], slope = figures[1];
    const bool sound = finite(squared_norm);
    if (judges) {
      const bool stands = f.pending && !f.rejected;
      f.beyond = stands && c.slope < 0 && slope > -c.slope;
      n.accepted += stands;
      n.rejected_nonfinite += f.nonfinite;
      n.rejected_residual += f.rejected && !f.nonfinite;
      n.shortened += f.beyond;
      c.share = f.beyond ? 1 - ratio(c.slope, c.slope - slope) : 0;
      if (f.rejected || f.beyond) {
        c.trust_radius = larger(c.trust_radius * (f.rejected ? 0.25 : 0.5), kLeastTrust);
      } else if (stands && slope < -c.slope / 2 && f.limited) {
        c.trust_radius = smaller(2 * c.trust_radius, kMostTrust);
      }
      f.on_line = stands;
      c.slope_sum = 0;
    }
    const bool spoilt = f.rejected || !sound;
    n.skipped_nonfinite += !(sound || f.rejected);
    c.slope_sum = spoilt ? std::numeric_limits<double>::quiet_NaN() : c.slope_sum + slope;
    if (!spoilt) c.reference = larger(std::sqrt(squared_norm), 0.9 * c.reference);
    f.spoiled = f.spoiled || spoilt;
    f.complete = !f.spoiled;
    f.pending = f.rejected = f.nonfinite = false;
  }
};

struct Learn {
  Verdicts to;
  int64_t samples;
  const double* change;  // [segments]
  int64_t segments;
  const double* noise;  // [segments, noises]
  int64_t noises, noise_slot, level;

  AADL_INLINE void operator()() const {
    Control& c = *to.control;
    Flags& f = *to.flags;
    const double after = c.slope_sum / static_cast<double>(samples);
    if (f.on_line && c.slope < 0 && finite(after)) {
      c.excess = kForgetting * c.excess + smaller(after, -3 * c.slope);
      c.expected = kForgetting * c.expected - c.slope;
      const double damping =
          c.damping * std::exp(-kGain * larger(ratio(c.excess, c.expected), -1));
      c.damping = smaller(larger(damping, kLeastDamping), 1);
    }
    if (noises > 0) {
      constexpr double infinity = std::numeric_limits<double>::infinity();
      const int64_t before = (noise_slot + noises - 1) % noises;
      double total = 0, now = 0, earlier = 0;
      for (int64_t s = 0; s < segments; ++s) {
        total += change[s];
        now += noise[s * noises + noise_slot];
        earlier += noise[s * noises + before];
      }
      const double known = (now > 0) + (earlier > 0);  // a block that was dropped has none
      const double mean = (now + earlier) / larger(known, 1);
      if (f.complete) {
        c.noise_ratio = total > 0 ? mean / total : infinity;
      }
      const double rough = ratio(static_cast<double>(samples) * now, c.reference * c.reference);
      c.roughness = f.complete ? rough : infinity;
      const bool whole = c.damping > 0.95;
      const bool longer =
          level < 0 ? c.damping < 0.8 : c.noise_ratio > 0.3 && c.damping < 0.7;
      const bool shorter =
          level > 0 ? c.noise_ratio < 0.1 || whole : c.noise_ratio < 0.01 && whole;
      c.level_change = !f.complete ? 0 : longer ? 1 : shorter ? -1 : 0;
    }
    to.counts->pairs += f.complete;
    f.ready = f.complete;
    f.paired = f.paired || f.complete;
    f.spoiled = f.on_line = false;
  }
};

struct Compare {
  Verdicts to;
  const double* squared_norm;
  const double* change;

  AADL_INLINE void operator()() const {
    to.flags->exact = repeats_within(*change, *squared_norm);
  }
};

struct JudgeLine {
  Verdicts to;
  const double* figures;  // squared norm and slope
  const double* change;
  const bool* moved;  // may be null
  const bool* base;
  double growth;
  bool hold;

  AADL_INLINE void operator()() const {
    Control& c = *to.control;
    Flags& f = *to.flags;
    Counts& n = *to.counts;
    const bool waits = f.pending, held = f.held, by_base = *base;
    release(to, moved, false);
    const double squared_norm = figures[0], slope = figures[1], norm = std::sqrt(squared_norm);
    const bool sound = finite(squared_norm);
    const bool repeats = repeats_within(*change, squared_norm);
    const bool exact = f.exact && (f.pending || !waits) && (repeats || !held) &&
                       (sound || f.pending);
    const bool judged = exact && f.pending && !held;
    const bool low = slope <= kSteep * std::fabs(c.slope) || by_base;
    const bool good = judged && sound && low && norm <= growth * c.reference;
    const bool bad = judged && !good;
    const bool taken = good && !by_base;
    n.accepted += taken;
    n.shortened += taken && c.tries > 0;
    const double tries = bad ? c.tries + 1 : judged ? 0 : c.tries;
    f.rejected = tries > kTries;
    c.tries = f.rejected ? 0 : tries;
    n.rejected_residual += f.rejected && sound;
    n.rejected_nonfinite += f.rejected && !sound;
    n.skipped_nonfinite += !(sound || f.pending);
    f.complete = sound && f.paired;
    f.ready = exact && (good || !f.pending);
    f.anew = f.ready || (exact && f.rejected);
    const bool back = exact && bad && !f.rejected;
    const double less = larger(smaller(ratio(c.slope, c.slope - slope), 0.9), 0.05);
    c.share = f.anew ? 0 : !back ? 1 : sound ? less : 0.1;
    f.held = exact && ((back && c.tries == 2) || (f.ready && hold));
    if (f.ready && !by_base) c.reference = larger(norm, 0.9 * c.reference);
    n.pairs += exact && f.complete;
    f.exact = exact;
  }
};

struct TakeLine {
  Verdicts to;
  const double* slope;
  const bool* moves;
  const bool* fits;
  const bool* base;

  AADL_INLINE void operator()() const {
    Control& c = *to.control;
    Flags& f = *to.flags;
    c.slope = *slope;
    const bool descends = c.slope < 0, by_base = *base;
    const bool exact = f.exact && *fits;
    f.held = exact && (f.held || !((descends && *moves) || by_base));
    f.declined = f.held || (f.exact && !(exact || f.ready));
    f.accepted = exact;
    f.write = exact || f.declined;
    to.counts->extrapolations += exact && f.anew && descends && !by_base;
    f.paired = f.paired || f.ready;
    f.exact = f.pending = exact;
    f.rejected = false;
  }
};

}  // namespace aadl
