// The verdicts of a step: ops/verdicts.py.
#include "op.h"

namespace aadl {
namespace {

template <class On>
Verdicts verdicts(const On& on, const Tensor& control, const Tensor& flags, const Tensor& counts) {
  return {entries<Control>(on, "control", control, ScalarType::Double, {sizeof(Control) / 8}),
          entries<Flags>(on, "flags", flags, ScalarType::Bool, {sizeof(Flags)}),
          entries<Counts>(on, "counts", counts, ScalarType::Long, {sizeof(Counts) / 8})};
}

template <class On>
void judge_gradient_(Tensor control, Tensor flags, Tensor counts, const Tensor& figures,
                     std::optional<Tensor> moved, double growth, bool averages) {
  const On on(control);
  const bool has_slope = figures.numel() == 3;
  judge(JudgeGradient{verdicts(on, control, flags, counts),
                      numbers(on, "figures", figures, has_slope ? 3 : 1),
                      check_flag(on, "moved", moved), growth, averages, has_slope},
        on.how);
}

template <class On>
void judge_residual_(Tensor control, Tensor flags, Tensor counts, const Tensor& figures,
                     std::optional<Tensor> moved, bool compares, bool stores, bool averages) {
  const On on(control);
  judge(JudgeResidual{verdicts(on, control, flags, counts), numbers(on, "figures", figures, 4),
                      check_flag(on, "moved", moved), compares, stores, averages},
        on.how);
}

template <class On>
void arm_(Tensor control, Tensor flags, Tensor counts, const Tensor& possible,
          std::vector<Tensor> passes, std::vector<int64_t> causes, bool guarded, bool patient) {
  const On on(control);
  const size_t tests = passes.size();
  STD_TORCH_CHECK(tests == causes.size() && tests <= Arm::kMost, "got ", tests, " tests and ",
                  causes.size(), " causes; at most ", Arm::kMost, " are possible");
  Arm args = {verdicts(on, control, flags, counts), check_flag(on, "possible", possible), {}, {},
              static_cast<int>(tests), guarded, patient};
  for (size_t i = 0; i < tests; ++i) {
    STD_TORCH_CHECK(0 <= causes[i] && causes[i] < counts.numel(), "there is no cause ", causes[i]);
    args.passes[i] = check_flag(on, "passes", passes[i]);
    args.causes[i] = causes[i];
  }
  judge(args, on.how);
}

template <class On>
void average_(Tensor control, Tensor flags, Tensor counts, const Tensor& max_std, double threshold,
              int64_t length) {
  const On on(control);
  on.check("max_std", max_std);
  const bool wide = max_std.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(max_std.numel() == 1 && (wide || max_std.scalar_type() == ScalarType::Float),
                  "max_std must be one number, float32 or float64");
  judge(Average{verdicts(on, control, flags, counts), max_std.const_data_ptr(), wide, threshold,
                static_cast<double>(length)},
        on.how);
}

template <class On>
void judge_slope_(Tensor control, Tensor flags, Tensor counts, const Tensor& figures,
                  bool judges) {
  const On on(control);
  judge(JudgeSlope{verdicts(on, control, flags, counts), numbers(on, "figures", figures, 2),
                   judges},
        on.how);
}

template <class On>
void learn_(Tensor control, Tensor flags, Tensor counts, int64_t samples, const Tensor& change,
            const Tensor& noise, int64_t noise_slot, int64_t level) {
  const On on(control);
  const int64_t segments = change.numel(), noises = noise.dim() == 2 ? noise.size(1) : -1;
  STD_TORCH_CHECK(samples > 0 && noises >= 0 && noise_slot < noises + (noises == 0) &&
                      noise_slot >= (noises > 0 ? 0 : -1),
                  "got ", samples, " samples and slot ", noise_slot, " of ", noises);
  judge(Learn{verdicts(on, control, flags, counts), samples,
              numbers(on, "change", change, segments), segments,
              numbers(on, "noise", noise, segments * noises), noises, noise_slot, level},
        on.how);
}

template <class On>
void compare_(Tensor control, Tensor flags, Tensor counts, const Tensor& squared_norm,
              const Tensor& change) {
  const On on(control);
  judge(Compare{verdicts(on, control, flags, counts),
                numbers(on, "squared_norm", squared_norm, 1), numbers(on, "change", change, 1)},
        on.how);
}

template <class On>
void judge_line_(Tensor control, Tensor flags, Tensor counts, const Tensor& figures,
                 const Tensor& change, std::optional<Tensor> moved, const Tensor& base,
                 double growth, bool hold) {
  const On on(control);
  judge(JudgeLine{verdicts(on, control, flags, counts), numbers(on, "figures", figures, 2),
                  numbers(on, "change", change, 1), check_flag(on, "moved", moved),
                  check_flag(on, "base", base), growth, hold},
        on.how);
}

template <class On>
void take_line_(Tensor control, Tensor flags, Tensor counts, const Tensor& slope,
                const Tensor& moves, const Tensor& fits, const Tensor& base) {
  const On on(control);
  judge(TakeLine{verdicts(on, control, flags, counts), numbers(on, "slope", slope, 1),
                 check_flag(on, "moves", moves), check_flag(on, "fits", fits),
                 check_flag(on, "base", base)},
        on.how);
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(judge_gradient_)
AADL_REGISTER(judge_residual_)
AADL_REGISTER(arm_)
AADL_REGISTER(average_)
AADL_REGISTER(judge_slope_)
AADL_REGISTER(learn_)
AADL_REGISTER(compare_)
AADL_REGISTER(judge_line_)
AADL_REGISTER(take_line_)
