// A CUDA thread is a thread of the host, two blocks at a time: for ThreadSanitizer, which does not
// see fibers.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "emulated_block.h"

namespace aadl::cuda_on_host {
namespace {

#ifdef __SANITIZE_THREAD__
extern "C" void AnnotateIgnoreSyncBegin(const char*, int);
extern "C" void AnnotateIgnoreSyncEnd(const char*, int);
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#endif

// Holds a block's mutex for the housekeeping of the emulation, unseen by ThreadSanitizer: else
// threads would seem to wait for each other where the kernel does not make them.
class Unseen {
 public:
  explicit Unseen(Block& block) : block_(block) {
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
    block_.mutex.lock();
  }
  ~Unseen() {
    block_.mutex.unlock();
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
#endif
  }

 private:
  Block& block_;
};

}  // namespace

void fail(const std::string& message) {
  std::fprintf(stderr, "cuda_on_host: %s\n", message.c_str());
  std::abort();
}

void wait(Barrier& barrier, const Place& place) {
  Block& block = *self->block;
  std::unique_lock<std::mutex> lock(block.mutex);
  const int64_t generation = barrier.generation;
  if (arrive(barrier, place)) return block.changed.notify_all();
  const auto open = [&] { return barrier.generation != generation; };
  if (!block.changed.wait_for(lock, std::chrono::minutes(2), open)) {
    fail("divergent barrier: threads wait at " + described(place) + ", others do not come");
  }
}

namespace {

// Runs every second block, on threads of its own.
void run_half(const std::vector<dim3>& blocks, size_t first, dim3 grid, dim3 block_size,
              int64_t shared_bytes, const std::function<void()>& body) {
  std::vector<std::unique_ptr<Block>> half;
  for (size_t b = first; b < blocks.size(); b += 2) {
    half.push_back(
        std::make_unique<Block>(blocks[b], static_cast<int>(block_size.x), shared_bytes));
  }
  std::vector<std::thread> running;
  for (unsigned i = 0; i < block_size.x; ++i) {
    running.emplace_back([&, i] {
      Thread thread;
      thread.position = position_of(i, grid, block_size);
      self = &thread;
      position = &thread.position;
      for (const auto& block : half) {
        thread.enter(*block);
        body();
        const Unseen lock(*block);
        leave(*block);
      }
    });
  }
  for (std::thread& thread : running) thread.join();
}

}  // namespace

void run(const std::vector<dim3>& blocks, dim3 grid, dim3 block, int64_t shared_bytes,
         const std::function<void()>& body) {
  std::thread other([&] { run_half(blocks, 1, grid, block, shared_bytes, body); });
  run_half(blocks, 0, grid, block, shared_bytes, body);
  other.join();
}

void* shared_memory(const void* tag, size_t bytes) {
  const Unseen lock(*self->block);
  return shared_memory_of(*self->block, tag, bytes);
}

}  // namespace aadl::cuda_on_host
