// What the ops take and return, as torch is told.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(aadl_ext, m) {
  m.def("gather(Tensor[] tensors, Tensor(a!) out, Tensor? when=None) -> ()");
  m.def("scatter(Tensor(a!)[] tensors, Tensor flat, Tensor? when=None) -> ()");
  m.def("squared_norm(Tensor[] tensors) -> Tensor");
  m.def(
      "push_secant(Tensor before, Tensor after, Tensor last_point, Tensor last_residual, "
      "float[] rates, int[] offsets, Tensor(a!) residual, Tensor(b!) step_rows, "
      "Tensor(c!) residual_rows, int slot, Tensor(d!)? systems) -> Tensor");
  m.def(
      "extrapolate(Tensor before, Tensor after, float relaxation, Tensor rows, "
      "Tensor coefficients, int[] offsets, Tensor(a!) out, Tensor? accept=None) -> Tensor");
  m.def("window_statistics(Tensor[] window, Tensor(a!) out) -> Tensor");
  m.def("tsqr(Tensor rows, Tensor? append, int[] offsets) -> Tensor");
  m.def(
      "solve_secants(Tensor system, bool factored, float ridge, float tolerance) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "add_sample(Tensor(a!) point_sum, Tensor(b!) gradient_sum, Tensor(c!)? noise_sum, "
      "Tensor point, Tensor anchor, Tensor gradient, float sign, Tensor? direction) -> Tensor");
  m.def(
      "push_block(Tensor(a!) point_sum, Tensor(b!) gradient_sum, Tensor(c!)? noise_sum, int count, "
      "Tensor(d!) last_point, Tensor(e!) last_gradient, Tensor(f!) step_rows, "
      "Tensor(g!) gradient_rows, Tensor(h!) noise_rows, int slot, int noise_slot, "
      "Tensor? accept=None) -> ()");
  m.def(
      "solve_subspace(Tensor metric, Tensor curvature, Tensor right_side, Tensor noise, "
      "Tensor radius, float ridge, float floor, float shrinkage) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("cross_products(Tensor rows, Tensor[] vectors, int[] offsets) -> Tensor");
}
