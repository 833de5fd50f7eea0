#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor cross_products(const Tensor& rows, std::vector<Tensor> vectors,
                      std::vector<int64_t> offsets) {
  const On on(rows);
  const int64_t size = rows.dim() == 2 ? rows.size(1) : -1;
  check_rows(on, "rows", rows, size);
  const int64_t segments = check_offsets(offsets, size);
  STD_TORCH_CHECK(!vectors.empty(), "there must be a vector");
  const int64_t count = rows.size(0), width = static_cast<int64_t>(vectors.size());
  Tensor result = doubles(rows, {segments, count, width});
  Products args = {{}, {}, offsets.data(), segments, out<double>(result)};
  const char* const first = static_cast<const char*>(rows.const_data_ptr());
  const int64_t stride = rows.stride(0) * static_cast<int64_t>(rows.element_size());
  for (int64_t i = 0; i < count; ++i) {
    args.rows.push_back({first + i * stride, size, kernel_type(rows)});
  }
  for (const Tensor& vector : vectors) {
    check_vector(on, "vectors", vector, size, vector.scalar_type());
    args.vectors.push_back({vector.const_data_ptr(), size, kernel_type(vector)});
  }
  products(args, on.how);
  return result;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(cross_products)
