#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor tsqr(const Tensor& rows, std::optional<Tensor> append, std::vector<int64_t> offsets) {
  const On on(rows);
  const ScalarType storage = rows.scalar_type();
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) >= 1, "rows must be [k >= 1, n]");
  STD_TORCH_CHECK(storage == ScalarType::Float || storage == ScalarType::Double,
                  "rows must be float32 or float64");
  const int64_t size = rows.size(1), segments = check_offsets(offsets, size);
  on.check("rows", rows);
  const ScalarType type = append ? append->scalar_type() : storage;
  if (append) check_vector(on, "append", *append, size, type);
  STD_TORCH_CHECK(type == storage || type == ScalarType::Double,
                  "append must be float64, or float32 beside float32 rows");
  const int64_t columns = rows.size(0) + (append ? 1 : 0);
  Tensor factor = torch::stable::new_empty(rows, {segments, columns, columns}, type);
  Tensor lying = rows;
  if (size > 1 && rows.stride(1) != 1 && !On::reads_steps(columns, type == ScalarType::Double)) {
    lying = torch::stable::new_empty(rows, rows.sizes());
    torch::stable::copy_(lying, rows);
  }
  const auto run = [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    // An empty tensor has no address, but null would mean that there is no column.
    const T* column = !append ? nullptr : size > 0 ? in<T>(*append) : in<T>(factor);
    const int64_t step = size > 1 ? lying.stride(1) : 1;
    tsqr(Tsqr<T, S>{in<S>(lying), lying.stride(0), step, rows.size(0), column, offsets.data(),
                    segments, out<T>(factor)},
         on.how);
  };
  if (type == ScalarType::Float) {
    run(float{}, float{});
  } else if (storage == ScalarType::Float) {
    run(double{}, float{});
  } else {
    run(double{}, double{});
  }
  return factor;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(tsqr)
