// Inside the emulation of CUDA: what its two ways of running the threads of a block have in common.
// Fibers are the one (cuda_fibers.cpp), threads of the host the other (cuda_threads.cpp).
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_on_host.h"

namespace aadl::cuda_on_host {

// Memory of which every byte is 0xff: NaN as a float or double.
struct SharedMemory {
  const void* tag;
  std::unique_ptr<unsigned char[]> bytes;

  SharedMemory(const void* tag, size_t size) : tag(tag), bytes(new unsigned char[size]) {
    std::memset(bytes.get(), 0xff, size);
  }
};

// Where `size` threads wait for each other.
struct Barrier {
  int size = 0;
  int arrived = 0;
  int returned = 0;
  int64_t generation = 0;
  Place place = {};
};

struct Warp {
  Barrier barrier;
  // Two sets by turns: a lane may begin the next exchange while another still reads from this one.
  uint64_t values[2][kLanes] = {};
};

// What the threads of a running block have in common.
struct Block {
  dim3 index;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<SharedMemory> shared;  // the dynamic one first
  std::mutex mutex;                  // where the threads of the emulation are threads
  std::condition_variable changed;

  Block(dim3 index, int threads, int64_t shared_bytes) : index(index), warps(threads / kLanes) {
    barrier.size = threads;
    for (Warp& warp : warps) warp.barrier.size = kLanes;
    shared.emplace_back(nullptr, shared_bytes);
  }
};

struct Thread {
  Position position = {};
  Block* block = nullptr;
  int64_t exchanges = 0;

  void enter(Block& entered) {
    block = &entered;
    position.block = entered.index;
    exchanges = 0;
  }
};

inline thread_local Thread* self = nullptr;  // the running one
inline unsigned schedule_seed = 0;

inline Position position_of(unsigned thread, dim3 grid, dim3 block) {
  return {dim3(thread, 0, 0), {}, block, grid};
}

std::string described(const Place& place);

// Counts the running thread in; true if it is the last, so that all may go on.
bool arrive(Barrier& barrier, const Place& place);

// The running thread will come to no barrier any more.
void leave(Block& block);

void* shared_memory_of(Block& block, const void* tag, size_t bytes);

// Each way has its own of these, of `fail` and of `shared_memory`.
void wait(Barrier& barrier, const Place& place);
void run(const std::vector<dim3>& blocks, dim3 grid, dim3 block, int64_t shared_bytes,
         const std::function<void()>& body);

}  // namespace aadl::cuda_on_host
