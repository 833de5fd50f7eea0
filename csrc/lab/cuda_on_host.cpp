#include "cuda_on_host.h"

#include <cstdlib>
#include <stdexcept>

#include "emulated_block.h"

namespace aadl::cuda_on_host {

std::string described(const Place& place) {
  return std::string(place.file) + ":" + std::to_string(place.line);
}

bool arrive(Barrier& barrier, const Place& place) {
  if (barrier.returned > 0) {
    fail("divergent barrier: a thread waits at " + described(place) + ", others have returned");
  }
  if (barrier.arrived == 0) barrier.place = place;
  const Place& other = barrier.place;
  if (other.line != place.line || std::strcmp(other.file, place.file) != 0) {
    fail("divergent barrier: some threads wait at " + described(other) + ", others at " +
         described(place));
  }
  if (++barrier.arrived < barrier.size) return false;
  barrier.arrived = 0;
  ++barrier.generation;
  return true;
}

void leave(Block& block) {
  for (Barrier* barrier :
       {&block.barrier, &block.warps[self->position.thread.x / kLanes].barrier}) {
    ++barrier->returned;
    if (barrier->arrived > 0) {
      fail("divergent barrier: threads wait at " + described(barrier->place) +
           ", one has returned");
    }
  }
}

namespace {

std::vector<dim3> blocks_of(dim3 grid) {
  std::vector<dim3> blocks;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) blocks.emplace_back(x, y, z);
    }
  }
  return blocks;
}

}  // namespace

void launch(dim3 grid, dim3 block, int64_t shared_bytes, const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (block.x < 1 || block.x > 1024 || block.x % kLanes != 0 || block.y != 1 || block.z != 1) {
    throw std::logic_error("a block has a multiple of 32 threads up to 1024, in one dimension");
  }
  if (grid.x < 1 || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535) {
    throw std::logic_error("a grid has at least one block, and at most 65535 along y and z");
  }
  const char* const seed = std::getenv("AADL_SCHEDULE");
  schedule_seed = seed ? static_cast<unsigned>(std::atoi(seed)) : 0;
  run(blocks_of(grid), grid, block, shared_bytes, body);
}

void synchronize_block(Place place) { wait(self->block->barrier, place); }

uint64_t exchange(uint64_t value, int source, Place place) {
  Warp& warp = self->block->warps[self->position.thread.x / kLanes];
  uint64_t* const values = warp.values[self->exchanges++ % 2];
  values[lane()] = value;
  wait(warp.barrier, place);
  return values[source];
}

void* shared_memory_of(Block& block, const void* tag, size_t bytes) {
  for (const SharedMemory& memory : block.shared) {
    if (memory.tag == tag) return memory.bytes.get();
  }
  return block.shared.emplace_back(tag, bytes).bytes.get();
}

void* dynamic_shared_memory() { return shared_memory(nullptr, 0); }

}  // namespace aadl::cuda_on_host
