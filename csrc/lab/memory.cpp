// What the memory gives, in the way that the kernels use it: the floor under their times.

#include "arrays.h"
#include "cpu/blocks.h"

namespace aadl::lab {
namespace {

using namespace aadl::cpu;

AADL_TARGETS int64_t mix(const int64_t* from, int64_t count) {
  int64_t bits = 0;
#pragma omp simd reduction(^ : bits)
  for (int64_t i = 0; i < count; ++i) bits ^= from[i];
  return bits;
}

// Reads an array of any dtype once; returns its bits mixed, so that nobody leaves the reading out.
int64_t read(const py::buffer& array, int64_t threads) {
  const py::buffer_info info = array.request();
  const int64_t* from = static_cast<const int64_t*>(info.ptr);
  const auto blocks = make_blocks(info.size * info.itemsize / 8);
  std::vector<int64_t> mixed(blocks.size());
  const auto run = threads_of(threads);
  {
    py::gil_scoped_release release;
    run_blocks(blocks, run, [&](int64_t i) {
      mixed[i] = mix(from + blocks[i].begin, blocks[i].end - blocks[i].begin);
    });
  }
  return mix(mixed.data(), static_cast<int64_t>(mixed.size()));
}

// Fills an array with zeros past the caches.
void write(const py::buffer& array, int64_t threads) {
  const py::buffer_info info = array.request(true);
  int64_t* to = static_cast<int64_t*>(info.ptr);
  const auto blocks = make_blocks(info.size * info.itemsize / 8);
  const auto run = threads_of(threads);
  py::gil_scoped_release release;
  run_blocks(blocks, run, [&](int64_t i) {
    alignas(64) const int64_t zeros[kChunk] = {};
    for (int64_t j = blocks[i].begin; j < blocks[i].end; j += kChunk) {
      store(to + j, zeros, std::min(kChunk, blocks[i].end - j), true);
    }
    finish_stores(true);
  });
}

}  // namespace

void add_memory(py::module_& m) {
  m.def("read", &read, py::arg("array"), py::arg("threads") = 1);
  m.def("write", &write, py::arg("array"), py::arg("threads") = 1);
}

}  // namespace aadl::lab
